#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "adaptive_k/calibration/preset.hpp"
#include "gguf.h"
#if ADAPTIVE_K_GGML_METRICS
#include "adaptive_k/observability/http_server.hpp"
#endif

namespace adaptive_k_ggml {

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

/// The file that an address of this process is mapped from; "" where there is none, or no /proc.
std::string mapped_file(const void* address) {
  std::ifstream maps("/proc/self/maps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::string range, rights, offset, device, inode, path;
    fields >> range >> rights >> offset >> device >> inode;
    std::getline(fields >> std::ws, path);
    char* end = nullptr;
    const std::uintptr_t first = std::strtoull(range.c_str(), &end, 16);
    if (end == nullptr || *end != '-') continue;
    const std::uintptr_t last = std::strtoull(end + 1, nullptr, 16);
    if (wanted >= first && wanted < last) return path.rfind('/', 0) == 0 ? path : std::string();
  }
  return "";
}

/// general.name of a GGUF file; "" where it has none.
std::string name_in(const std::string& file) {
  if (file.empty()) return "";
  gguf_init_params params = {};
  params.no_alloc = true;
  gguf_context* const context = gguf_init_from_file(file.c_str(), params);
  if (context == nullptr) return "";
  std::string name;
  const std::int64_t key = gguf_find_key(context, "general.name");
  if (key >= 0 && gguf_get_kv_type(context, key) == GGUF_TYPE_STRING)
    name = gguf_get_val_str(context, key);
  gguf_free(context);
  return name;
}

bool is_short_form(const std::string& spec) {
  return spec == "full" || spec.find(':') != std::string::npos || spec.rfind("full,", 0) == 0;
}

bool is_preset_file(const std::string& spec) {
  if (std::filesystem::path(spec).extension() != ".json") return false;
  const nlohmann::json root = nlohmann::json::parse(std::ifstream(spec), nullptr, false);
  return root.is_object() && root.contains("policies");
}

const float* weight_at(const ggml_tensor* weights, int slot, int token) {
  return reinterpret_cast<const float*>(static_cast<const char*>(weights->data) +
                                        static_cast<std::size_t>(slot) * weights->nb[1] +
                                        static_cast<std::size_t>(token) * weights->nb[2]);
}

std::int32_t id_at(const ggml_tensor* ids, int slot, int token) {
  return *reinterpret_cast<const std::int32_t*>(static_cast<const char*>(ids->data) +
                                                static_cast<std::size_t>(slot) * ids->nb[0] +
                                                static_cast<std::size_t>(token) * ids->nb[1]);
}

bool same_gating(const gating& a, const gating& b) {
  return a.kind == b.kind && a.num_experts == b.num_experts && a.top_k == b.top_k &&
         a.renormalize == b.renormalize && a.selection_bias == b.selection_bias &&
         a.routed_scaling_factor == b.routed_scaling_factor && a.n_group == b.n_group &&
         a.topk_group == b.topk_group;
}

}  // namespace

void say(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string line = "adaptive-k: ";
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  line += text;
  line += '\n';
  std::fputs(line.c_str(), stderr);  // in one piece
}

// --- A model's policy ------------------------------------------------------------------------

model_policy::model_policy(const settings& set, const moe_layer& layer, std::vector<int> numbers)
    : model_(layer.model), numbers_(std::move(numbers)) {
  try {
    if (const status fits = validate(model_); !fits.ok()) throw std::runtime_error(fits.message());
    model_name_ =
        name_in(!set.model_file.empty() ? set.model_file : mapped_file(layer.router->data));
    choose_policy(set);
    full_ = std::make_unique<adaptive_k::router>(model_, k_policy::full());
    if (!router_->validity().ok()) throw std::runtime_error(router_->validity().message());
    if (const int layers = router_->num_layers();
        layers != 0 && layers != static_cast<int>(numbers_.size()))
      throw std::runtime_error("policy '" + policy_name_ + "' is for " + std::to_string(layers) +
                               " MoE layers, the model has " + std::to_string(numbers_.size()));
  } catch (const std::exception& error) {
    refusal_ = error.what();
  }
  if (model_name_.empty()) model_name_ = "unnamed";
}

void model_policy::choose_policy(const settings& set) {
  const int layers = static_cast<int>(numbers_.size());
  std::string preset_name = set.policy;
  if (preset_name == "auto") {
    if (model_name_.empty())
      throw std::runtime_error(
          "ADAPTIVE_K=auto looks for a preset by the GGUF's general.name, and found no GGUF (is "
          "mmap off?), expected its path in ADAPTIVE_K_MODEL");
    preset_name = model_name_;
  } else if (is_short_form(set.policy) ||
             (std::filesystem::path(set.policy).extension() == ".json" &&
              !is_preset_file(set.policy))) {
    if (!set.preset_policy.empty())
      throw std::runtime_error("ADAPTIVE_K_POLICY is '" + set.preset_policy +
                               "', expected nothing beside a policy in ADAPTIVE_K");
    const preset_policy policy = parse_policy(set.policy, model_, layers);
    policy_name_ = policy.name;
    router_ = std::make_unique<adaptive_k::router>(make_router(model_, policy, layers));
    return;
  }
  const preset found = load_preset(preset_name);
  // Refuses a preset of another router, and says how they differ.
  static_cast<void>(parse_policy(found.file.string(), model_, layers));
  const preset_policy policy = parse_policy(set.preset_policy, found);
  policy_name_ = policy.name;
  router_ = std::make_unique<adaptive_k::router>(make_router(model_, policy, layers));
}

int model_policy::index_of(int number) const {
  const auto at = std::lower_bound(numbers_.begin(), numbers_.end(), number);
  return at != numbers_.end() && *at == number ? static_cast<int>(at - numbers_.begin()) : -1;
}

std::string model_policy::mismatch(const moe_layer& layer) const {
  return same_gating(layer.model, model_) ? ""
                                          : "its gating is not that of the model's first layer";
}

std::string model_policy::check_choice(const moe_layer& layer, const float* logits) const {
  const int tokens = std::min(layer.num_tokens(), 64);
  routing_extras extras;
  extras.routing_bias = layer.bias;
  const routed_batch own =
      full_->route(0, logits_view<float>{logits, tokens, model_.num_experts}, nullptr, extras);
  if (!own.result.ok()) return own.result.message();
  int different = 0;
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < model_.top_k; ++j) {
      const auto slot = static_cast<std::size_t>(t * model_.top_k + j);
      const float weight = *weight_at(layer.weights, j, t);
      const bool close =
          std::abs(own.topk_weights[slot] - weight) <= 1e-3f * std::abs(weight) + 1e-7f;
      if (own.topk_ids[slot] == id_at(layer.ids, j, t) && close) continue;
      if (close) continue;  // a tie, in another order
      ++different;
      break;
    }
  if (different <= tokens / 16) return "";
  return std::to_string(different) + " of " + std::to_string(tokens) +
         " tokens have other experts or weights than this gating gives (" + to_string(model_.kind) +
         ", " + std::to_string(model_.num_experts) + " of which " + std::to_string(model_.top_k) +
         ")";
}

// --- The process -----------------------------------------------------------------------------

routing_service::routing_service(settings set) : settings_(std::move(set)) {
  if (settings_.metrics_port > 0) {
#if ADAPTIVE_K_GGML_METRICS
    const status listening = start_http_server(settings_.metrics_port);
    if (!listening.ok())
      throw std::runtime_error("ADAPTIVE_K_METRICS_PORT: " + std::string(listening.message()));
    if (!settings_.quiet) say("metrics at http://127.0.0.1:%d/metrics", settings_.metrics_port);
#else
    throw std::runtime_error(
        "ADAPTIVE_K_METRICS_PORT: this build has no endpoint (Boost's headers "
        "were not found)");
#endif
  }
  if (!settings_.log_file.empty()) {
    std::FILE* const file =
        settings_.log_file == "-" ? stderr : std::fopen(settings_.log_file.c_str(), "ab");
    if (file == nullptr)
      throw std::runtime_error("ADAPTIVE_K_LOG is '" + settings_.log_file +
                               "', expected a file that can be written");
    logger_ = std::make_unique<json_logger>([file](std::string_view line) {
      if (std::fwrite(line.data(), 1, line.size(), file) != line.size() || std::fflush(file) != 0)
        throw std::runtime_error("the log cannot be written");
    });
  }
}

void routing_service::announce(const model_shape& shape, int number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  models_[shape].numbers.insert(number);
}

std::shared_ptr<const model_policy> routing_service::policy_of(const moe_layer& layer,
                                                               const float* logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  known_model& model = models_[{layer.num_experts(), layer.input->ne[0]}];
  std::shared_ptr<const model_policy>& policy = model.by_top_k[layer.top_k()];
  if (policy == nullptr) {
    model.numbers.insert(layer.number);
    policy = std::make_shared<const model_policy>(
        settings_, layer, std::vector<int>(model.numbers.begin(), model.numbers.end()));
    if (!policy->refusal().empty())
      say("full K: %s", policy->refusal().c_str());
    else if (!settings_.quiet)
      say("%s: policy %s%s, %zu MoE layers, %d of %d experts (%s%s%s)",
          policy->model_name().c_str(), policy->policy_name().c_str(),
          settings_.shadow ? " in shadow mode" : "", model.numbers.size(), layer.top_k(),
          layer.num_experts(), to_string(layer.model.kind),
          layer.model.renormalize ? ", renormalised" : "",
          layer.model.selection_bias ? ", selection bias" : "");
  }
  if (!policy->refusal().empty()) return nullptr;
  if (model.refused.count(layer.number) != 0) return nullptr;
  std::string why = policy->mismatch(layer);
  if (why.empty() && policy->index_of(layer.number) < 0) why = "a layer that was not announced";
  if (why.empty() && model.checked.insert(layer.number).second)
    why = policy->check_choice(layer, logits);
  if (why.empty()) return policy;
  say("layer %d at full K: %s", layer.number, why.c_str());
  model.refused.insert(layer.number);
  return nullptr;
}

void routing_service::say_passed(int number, const std::string& why) {
  std::string reason;  // the same for each layer and number of tokens
  for (const char c : why)
    if (c < '0' || c > '9') reason += c;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (said_.size() < 100 && said_.insert(reason).second)
    say("layer %d at full K: %s (said once)", number, why.c_str());
}

void routing_service::record(const model_policy& policy, int number, const routing_metrics& metrics,
                             double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  total_ += metrics;
  if (settings_.metrics_port > 0) {
    series*& to = series_[{&policy, number}];
    if (to == nullptr)
      to = default_recorder().find({policy.model_name(), number, policy.policy_name()});
    default_recorder().record(to, metrics, seconds);
  }
  if (logger_ == nullptr) return;
  batch_ += metrics;
  batch_seconds_ += seconds;
  if (!policy.is_last(number)) return;
  log_event event(batch_, batch_seconds_);
  event.model = policy.model_name();
  event.policy = policy.policy_name();
  logger_->log(event);
  batch_ = {};
  batch_seconds_ = 0.0;
}

void routing_service::flush_log() {
  if (logger_ == nullptr) return;
  if (const status written = logger_->flush(); !written.ok()) say("the log: %s", written.message());
}

routing_metrics routing_service::total() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return total_;
}

}  // namespace adaptive_k_ggml

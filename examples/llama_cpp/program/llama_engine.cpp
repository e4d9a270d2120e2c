// moe_engine::engine by llama.cpp: the engine of adaptive-k-llama. A GGUF's layers run in ggml,
// with the plug-in's backend in this program, which lets the caller route and see what the experts
// put out.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../plugin/hooks.hpp"
#include "examples/moe_engine/engine.hpp"
#include "ggml-backend.h"
#include "llama.h"
#include "program.hpp"

extern "C" ggml_backend_reg_t ggml_backend_adaptive_k_reg();

namespace moe_engine {

namespace {

using adaptive_k_ggml::hooks;
using graph_layer = adaptive_k_ggml::moe_layer;

[[noreturn]] void fail(const std::string& file, const std::string& why) {
  throw std::runtime_error(file + ": " + why);
}

/// The plug-in in this process, on; llama.cpp's own lines only where something is wrong.
void start_llama() {
  static const bool started = [] {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    unsetenv("GGML_BACKEND_PATH");  // it would be here twice
    setenv("ADAPTIVE_K", "full", 1);
    setenv("ADAPTIVE_K_QUIET", "1", 1);
    for (const char* name : {"ADAPTIVE_K_CONFIG", "ADAPTIVE_K_POLICY", "ADAPTIVE_K_SHADOW",
                             "ADAPTIVE_K_METRICS_PORT", "ADAPTIVE_K_LOG"})
      unsetenv(name);
    ggml_backend_load_all();
    const ggml_backend_reg_t plugin = ggml_backend_adaptive_k_reg();
    if (plugin == nullptr) throw std::runtime_error("the plug-in does not fit this llama.cpp");
    ggml_backend_register(plugin);
    llama_backend_init();
    return true;
  }();
  static_cast<void>(started);
}

std::string meta(const llama_model* model, const std::string& key) {
  char text[256] = {};
  return llama_model_meta_val_str(model, key.c_str(), text, sizeof text) >= 0 ? text : "";
}

}  // namespace

struct engine::implementation {
  explicit implementation(const std::string& path) : file(path) {}
  implementation(const implementation&) = delete;
  implementation& operator=(const implementation&) = delete;
  ~implementation() {
    if (context != nullptr) llama_free(context);
    if (model != nullptr) llama_model_free(model);
  }

  /// A context for so many texts of `length` tokens, all in one pass; kept while they are as many.
  void make_context(int sequences, int length) {
    if (context != nullptr && sequences == num_sequences && length == context_length) return;
    if (context != nullptr) llama_free(context);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch =
        static_cast<std::uint32_t>(sequences * length);
    params.n_seq_max = static_cast<std::uint32_t>(sequences);
    params.n_threads = params.n_threads_batch =
        static_cast<std::int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    params.type_k = params.type_v = GGML_TYPE_F32;  // halves would be another model's keys
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.cb_eval = [](ggml_tensor* node, bool ask, void* self) {
      return static_cast<implementation*>(self)->see(node, ask);
    };
    params.cb_eval_user_data = this;
    context = llama_init_from_model(model, params);
    num_sequences = sequences;
    context_length = length;
    if (context == nullptr)
      fail(file, "no context of " + std::to_string(sequences) + " x " + std::to_string(length) +
                     " tokens");
  }

  /// The output of a layer whose experts were seen: less their sum it is what that was added to.
  bool see(ggml_tensor* node, bool ask) {
    const bool wanted =
        observe != nullptr && pending.layer >= 0 && std::strncmp(node->name, "l_out-", 6) == 0;
    if (ask || !wanted)
      return ask ? observe != nullptr && std::strncmp(node->name, "l_out-", 6) == 0 : true;
    std::vector<float> residual(static_cast<std::size_t>(ggml_nelements(node)));
    ggml_backend_tensor_get(node, residual.data(), 0, residual.size() * sizeof(float));
    if (residual.size() != sum.size())
      fail(file, "a layer's output of another shape than its experts'");
    for (std::size_t i = 0; i < residual.size(); ++i) residual[i] -= sum[i];
    pending.residual = residual.data();
    (*observe)(pending);
    pending.layer = -1;
    return true;
  }

  /// Sets what the plug-in asks in this pass.
  void set_hooks(const route_function& route, const observe_function* observer) {
    observe = observer;
    pending.layer = -1;
    refusal.clear();
    hooks().route = [&](int index, const graph_layer&, const adaptive_k::logits_view<float>& rows,
                        const adaptive_k::routing_output<>& output,
                        const adaptive_k::routing_extras& extras) {
      ++routed_layers;
      adaptive_k::status routed = route(index, rows, output, extras);
      if (!routed.ok()) refusal = routed.message();
      return routed;
    };
    hooks().observe = nullptr;
    if (observe == nullptr) return;
    hooks().observe = [&](int index, const graph_layer& layer, const float* rows,
                          const float* outputs, const float* total) {
      const auto tokens = static_cast<std::size_t>(layer.num_tokens());
      logits.assign(rows, rows + tokens * static_cast<std::size_t>(layer.num_experts()));
      const auto width = static_cast<std::size_t>(layer.output->ne[0]);
      shown.assign(outputs, outputs + tokens * static_cast<std::size_t>(layer.top_k()) * width);
      sum.assign(total, total + tokens * width);
      pending = {index,   layer.num_tokens(), layer.top_k(), static_cast<int>(width), logits.data(),
                 nullptr, shown.data(),       layer.bias};
    };
  }

  std::string file;
  llama_model* model = nullptr;
  llama_context* context = nullptr;
  int num_sequences = 0;
  int context_length = 0;
  model_config config;
  std::string dtype;
  std::vector<std::string> warnings;
  const observe_function* observe = nullptr;
  expert_outputs pending;
  std::vector<float> logits, shown, sum;
  std::string refusal;
  int routed_layers = 0;
};

engine::engine(std::unique_ptr<implementation> parts) : parts_(std::move(parts)) {}
engine::engine(engine&&) noexcept = default;
engine& engine::operator=(engine&&) noexcept = default;
engine::~engine() = default;
const model_config& engine::config() const noexcept {
  return parts_->config;
}
const std::string& engine::expert_dtype() const noexcept {
  return parts_->dtype;
}
const std::vector<std::string>& engine::warnings() const noexcept {
  return parts_->warnings;
}

engine engine::load(const std::filesystem::path& file) {
  start_llama();
  auto parts = std::make_unique<implementation>(file.string());
  parts->model = llama_model_load_from_file(file.string().c_str(), llama_model_default_params());
  if (parts->model == nullptr) fail(file.string(), "llama.cpp cannot load it");
  const llama_model* const model = parts->model;
  program::set_vocabulary(llama_model_get_vocab(model));
  model_config& config = parts->config;
  config.declared_name = meta(model, "general.name");
  config.name = file.stem().string();
  config.model_type = meta(model, "general.architecture");
  config.vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
  config.hidden_size = llama_model_n_embd(model);
  config.num_layers = llama_model_n_layer(model);
  config.num_heads = llama_model_n_head(model);
  config.num_kv_heads = llama_model_n_head_kv(model);
  config.max_positions = llama_model_n_ctx_train(model);

  // The gating and the experts' sizes, as the graph of two tokens has them.
  parts->make_context(1, 2);
  std::map<int, adaptive_k::gating> gatings;
  std::int64_t inner = 0;
  ggml_type type = GGML_TYPE_F32;
  hooks().observe = nullptr;
  hooks().route =
      [&](int index, const graph_layer& layer, const adaptive_k::logits_view<float>& logits,
          const adaptive_k::routing_output<>& output, const adaptive_k::routing_extras& extras) {
        gatings[index] = layer.model;
        const ggml_tensor* const down = layer.slots.front().node->src[0];
        inner = down->ne[1];
        type = down->type;
        for (const adaptive_k_ggml::slot_node& slot : layer.slots)
          if (slot.node->op == GGML_OP_MUL_MAT_ID)
            inner = slot.node->src[0]->ne[0];  // the last: down's
        return adaptive_k::router(layer.model, adaptive_k::k_policy::full())
            .route(0, logits, output, nullptr, extras);
      };
  const std::int32_t tokens[2] = {0, 1};
  std::vector<float> unused(2 * static_cast<std::size_t>(config.vocab_size));
  program::decode(parts->context, tokens, 1, 2, config.vocab_size, unused.data());
  hooks().route = nullptr;
  if (gatings.empty())
    fail(file.string(),
         "no MoE layer that the plug-in can run with fewer experts (see the lines above)");
  config.gating = gatings.begin()->second;
  config.num_moe_layers = gatings.rbegin()->first + 1;
  config.intermediate_size = static_cast<int>(inner);
  parts->dtype = ggml_type_name(type);
  std::transform(parts->dtype.begin(), parts->dtype.end(), parts->dtype.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  program::set_bytes_per_weight(static_cast<double>(ggml_type_size(type)) /
                                static_cast<double>(ggml_blck_size(type)));
  return engine(std::move(parts));
}

void engine::forward(const std::int32_t* tokens, int num_sequences, int length,
                     const route_function& route, float* logits, timing* time,
                     const observe_function& observe) {
  const auto start = std::chrono::steady_clock::now();
  parts_->make_context(num_sequences, length);
  parts_->set_hooks(route, observe ? &observe : nullptr);
  parts_->routed_layers = 0;
  hooks().layer_seconds = 0.0;
  program::decode(parts_->context, tokens, num_sequences, length, parts_->config.vocab_size,
                  logits);
  if (!parts_->refusal.empty()) throw std::runtime_error(parts_->refusal);
  if (parts_->routed_layers != parts_->config.num_moe_layers)
    fail(parts_->file, std::to_string(parts_->routed_layers) +
                           " routing calls, expected one for each of " +
                           std::to_string(parts_->config.num_moe_layers) + " MoE layers");
  hooks().route = nullptr;
  hooks().observe = nullptr;
  if (time == nullptr) return;
  time->moe_seconds += hooks().layer_seconds;
  time->total_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool engine::takes_router_heads() noexcept {
  return false;
}

bool engine::extends_texts() noexcept {
  return false;
}

void engine::extend(text_cache&, const std::int32_t*, const std::vector<int>&,
                    const route_function&, float*, timing*) {
  fail(parts_->file, "texts are not continued here: use llama-server");
}

void engine::forward_stacked(const std::int32_t*, int, int, const route_function&,
                             const stacking_hooks&, float*, work_count*, timing*) {
  fail(parts_->file, "early exit and token merging are not there in llama.cpp");
}

}  // namespace moe_engine

namespace program {

void decode(llama_context* context, const std::int32_t* tokens, int num_sequences, int length,
            int vocab_size, float* logits) {
  llama_memory_clear(llama_get_memory(context), true);
  llama_batch batch = llama_batch_init(num_sequences * length, 0, 1);
  batch.n_tokens = num_sequences * length;
  for (int i = 0; i < batch.n_tokens; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = i % length;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = i / length;
    batch.logits[i] = 1;
  }
  const int number = batch.n_tokens;
  const int failed = llama_decode(context, batch);
  llama_batch_free(batch);
  if (failed != 0) throw std::runtime_error("llama_decode failed: " + std::to_string(failed));
  const auto width = static_cast<std::size_t>(vocab_size);
  for (int i = 0; i < number; ++i)
    std::memcpy(logits + static_cast<std::size_t>(i) * width, llama_get_logits_ith(context, i),
                width * sizeof(float));
}

}  // namespace program

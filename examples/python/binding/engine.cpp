// moe_engine::engine over a model that Python runs: what the program adaptive-k measures in this
// package. It takes the place of examples/moe_engine's own engine.cpp, which is not linked, so that
// the program's commands, tables and reports are the same code.
#include "engine.hpp"

#include <moe_engine/engine.hpp>
#include <stdexcept>
#include <utility>

#include "arrays.hpp"

namespace adaptive_k_python {

nb::object& python_engine() {
  static nb::object* const engine = new nb::object();  // outlives the interpreter's end
  return *engine;
}

}  // namespace adaptive_k_python

namespace moe_engine {

using adaptive_k_python::input_array;
using adaptive_k_python::output_array;
using adaptive_k_python::python_engine;

namespace {

template <class T>
T field(const nb::object& object, const char* name) {
  return nb::cast<T>(object.attr(name));
}

template <class T>
using host_array = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu>;

/// A view of memory of this side for the time of a call.
template <class T>
nb::object view_of(T* data, std::size_t rows, std::size_t columns) {
  const std::size_t shape[] = {rows, columns};
  return nb::cast(host_array<T>(data, 2, shape, nb::handle()), nb::rv_policy::reference);
}

const float* optional_floats(const std::optional<input_array>& array, std::int64_t size) {
  return adaptive_k_python::optional_input<float>("routing_bias", array, size, "float32");
}

/// Routing calls of one forward pass, by the function that the program gave.
class caller {
 public:
  caller(const route_function& route, const adaptive_k::gating& gating)
      : route_(route), gating_(gating) {}

  void operator()(int layer, const input_array& logits, const output_array& ids,
                  const output_array& weights, const output_array& counts,
                  const std::optional<input_array>& routing_bias) const {
    const std::int64_t stride =
        adaptive_k_python::require_matrix("logits", logits, -1, gating_.num_experts, false);
    const auto tokens = static_cast<std::int64_t>(logits.shape(0));
    adaptive_k_python::require_matrix("ids", ids, tokens, gating_.top_k, true);
    adaptive_k_python::require_matrix("weights", weights, tokens, gating_.top_k, true);
    const bool typed = logits.dtype() == nb::dtype<float>() &&
                       ids.dtype() == nb::dtype<std::int32_t>() &&
                       weights.dtype() == nb::dtype<float>();
    if (!typed) throw nb::value_error("route: expected float32 logits and weights, int32 ids");
    const std::optional<output_array> wanted(counts);
    adaptive_k::routing_output<> output = {
        static_cast<std::int32_t*>(ids.data()), static_cast<float*>(weights.data()),
        adaptive_k_python::optional_output<std::int32_t>("counts", wanted, tokens, "int32")};
    adaptive_k::routing_extras extras;
    extras.routing_bias = optional_floats(routing_bias, gating_.num_experts);
    const adaptive_k::logits_view<float> view = {static_cast<const float*>(logits.data()), tokens,
                                                 gating_.num_experts, stride};
    adaptive_k_python::require(route_(layer, view, output, extras));
  }

 private:
  const route_function& route_;
  const adaptive_k::gating& gating_;
};

}  // namespace

struct engine::implementation {
  nb::object model;
  model_config config;
  std::string dtype;
  std::vector<std::string> warnings;
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

/// The model that Python has loaded; `folder` stands for it.
engine engine::load(const std::filesystem::path& folder) {
  const nb::object& model = python_engine();
  if (!model.is_valid() || model.is_none())
    throw std::runtime_error(folder.string() + ": no model was loaded");
  auto parts = std::make_unique<implementation>();
  parts->model = model;
  model_config& config = parts->config;
  config.name = field<std::string>(model, "name");
  config.vocab_size = field<int>(model, "vocab_size");
  config.hidden_size = field<int>(model, "hidden_size");
  config.intermediate_size = field<int>(model, "intermediate_size");
  config.num_layers = field<int>(model, "num_moe_layers");
  config.num_moe_layers = config.num_layers;
  config.num_shared_experts = field<int>(model, "num_shared_experts");
  config.shared_intermediate_size = field<int>(model, "shared_intermediate_size");
  config.max_positions = field<int>(model, "max_positions");
  // Plain data, and the other module's type: its fields are read one by one.
  const nb::object gating = model.attr("gating");
  adaptive_k::gating& g = config.gating;
  const auto kind = field<std::string>(gating, "kind");
  for (int i = 0; i < num_values(g.kind); ++i)
    if (kind == to_string(static_cast<adaptive_k::gating_kind>(i)))
      g.kind = static_cast<adaptive_k::gating_kind>(i);
  g.num_experts = field<int>(gating, "num_experts");
  g.top_k = field<int>(gating, "top_k");
  g.renormalize = field<bool>(gating, "renormalize");
  g.selection_bias = field<bool>(gating, "selection_bias");
  g.routed_scaling_factor = field<float>(gating, "routed_scaling_factor");
  g.n_group = field<int>(gating, "n_group");
  g.topk_group = field<int>(gating, "topk_group");
  g.group_rank = field<std::string>(gating, "group_rank") == "maximum"
                     ? adaptive_k::group_score::maximum
                     : adaptive_k::group_score::top2_sum;
  g.jitter_epsilon = field<float>(gating, "jitter_epsilon");
  parts->dtype = field<std::string>(model, "expert_dtype");
  return engine(std::move(parts));
}

void engine::forward(const std::int32_t* tokens, int num_sequences, int length,
                     const route_function& route, float* logits, timing* time,
                     const observe_function& observe) {
  const model_config& config = parts_->config;
  const caller routed(route, config.gating);
  const nb::object on_route = nb::cpp_function(
      [&routed](int layer, const input_array& given, const output_array& ids,
                const output_array& weights, const output_array& counts,
                const std::optional<input_array>& bias) {
        routed(layer, given, ids, weights, counts, bias);
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  nb::object on_block = nb::none();
  if (observe)
    on_block = nb::cpp_function(
        [&](int layer, const host_array<const float>& given,
            const host_array<const float>& residual, const host_array<const float>& outputs,
            const std::optional<input_array>& bias) {
          expert_outputs block;
          block.layer = layer;
          block.num_tokens = static_cast<std::int64_t>(given.shape(0));
          block.top_k = config.gating.top_k;
          block.hidden_size = static_cast<int>(residual.shape(1));
          block.logits = given.data();
          block.residual = residual.data();
          block.outputs = outputs.data();
          block.routing_bias = optional_floats(bias, config.gating.num_experts);
          observe(block);
        },
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  const auto rows = static_cast<std::size_t>(num_sequences) * static_cast<std::size_t>(length);
  const nb::object seconds = parts_->model.attr("forward")(
      view_of(tokens, static_cast<std::size_t>(num_sequences), static_cast<std::size_t>(length)),
      view_of(logits, rows, static_cast<std::size_t>(config.vocab_size)), on_route, on_block);
  if (time == nullptr) return;
  const auto spent = nb::cast<std::pair<double, double>>(seconds);
  time->moe_seconds += spent.first;
  time->total_seconds += spent.second;
}

bool engine::takes_router_heads() noexcept {
  return false;
}

bool engine::extends_texts() noexcept {
  return false;
}

void engine::extend(text_cache&, const std::int32_t*, const std::vector<int>&,
                    const route_function&, float*, timing*) {
  throw std::runtime_error("texts go on by transformers' own generate()");
}

void engine::forward_stacked(const std::int32_t*, int, int, const route_function&,
                             const stacking_hooks&, float*, work_count*, timing*) {
  throw std::runtime_error(
      "combine runs in the C++ engine alone: build the program of bench/ for it");
}

}  // namespace moe_engine

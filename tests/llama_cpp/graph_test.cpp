// MoE layers as llama.cpp's graphs have them, by ggml alone: a scheduler with the plug-in's backend
// and the CPU's. One token at a time the plug-in uses slots, a batch of tokens with different K
// rows: both must give the same bits, and what double arithmetic says of the library's own routing.
//   ggml_graph_test PLUGIN.so [THREADS]          ADAPTIVE_K=top_p:0.6,a=0.5 or another policy is
//   set
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/calibration/policy_spec.hpp"
#include "adaptive_k/host/router.hpp"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

namespace {

using adaptive_k::gating_kind;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  ++failures;
}

struct layer_case {
  const char* name;
  gating_kind kind;
  int experts, top_k;
  bool renormalize, bias, fused, expert_bias;
  int groups, used_groups;
  float scale;
  ggml_type type;
};

constexpr int width = 256, inner = 256;

class random_floats {
 public:
  explicit random_floats(unsigned seed) : state_(seed) {}
  float next() {  // about normal
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
      state_ = state_ * 1664525u + 1013904223u;
      sum += static_cast<float>(state_ >> 8) / 8388608.0f - 1.0f;
    }
    return sum * 0.87f;
  }
  std::vector<float> many(std::size_t number, float scale) {
    std::vector<float> values(number);
    for (float& value : values) value = next() * scale;
    return values;
  }

 private:
  unsigned state_;
};

struct moe_weights {
  ggml_context* context = nullptr;
  ggml_backend_buffer_t buffer = nullptr;
  ggml_tensor *router, *bias, *gate, *up, *gate_up, *down, *up_bias, *down_bias;
};

/// Stores floats as the tensor's type has them.
void fill(ggml_tensor* tensor, const std::vector<float>& values) {
  std::vector<unsigned char> bytes(ggml_nbytes(tensor));
  const std::int64_t rows = ggml_nrows(tensor);
  if (tensor->type == GGML_TYPE_F32)
    std::memcpy(bytes.data(), values.data(), bytes.size());
  else
    ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, rows, tensor->ne[0], nullptr);
  ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
}

std::vector<float> floats_of(const ggml_tensor* tensor) {
  std::vector<unsigned char> bytes(ggml_nbytes(tensor));
  ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
  std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
  if (tensor->type == GGML_TYPE_F32)
    std::memcpy(values.data(), bytes.data(), bytes.size());
  else
    ggml_get_type_traits(tensor->type)
        ->to_float(bytes.data(), values.data(), ggml_nelements(tensor));
  return values;
}

moe_weights make_weights(const layer_case& c, ggml_backend_t cpu) {
  moe_weights w = {};
  const ggml_init_params params = {16 * ggml_tensor_overhead(), nullptr, true};
  w.context = ggml_init(params);
  w.router = ggml_new_tensor_2d(w.context, GGML_TYPE_F32, width, c.experts);
  w.bias = ggml_new_tensor_1d(w.context, GGML_TYPE_F32, c.experts);
  w.gate = ggml_new_tensor_3d(w.context, c.type, width, inner, c.experts);
  w.up = ggml_new_tensor_3d(w.context, c.type, width, inner, c.experts);
  w.gate_up = ggml_new_tensor_3d(w.context, c.type, width, 2 * inner, c.experts);
  w.down = ggml_new_tensor_3d(w.context, c.type, inner, width, c.experts);
  w.up_bias = ggml_new_tensor_2d(w.context, GGML_TYPE_F32, inner, c.experts);
  w.down_bias = ggml_new_tensor_2d(w.context, GGML_TYPE_F32, width, c.experts);
  w.buffer = ggml_backend_alloc_ctx_tensors(w.context, cpu);
  ggml_backend_buffer_set_usage(w.buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
  random_floats from(7);
  for (ggml_tensor* t : {w.router, w.gate, w.up, w.gate_up, w.down})
    fill(t, from.many(static_cast<std::size_t>(ggml_nelements(t)), t == w.router ? 0.12f : 0.06f));
  fill(w.bias, from.many(static_cast<std::size_t>(c.experts), 0.1f));
  fill(w.up_bias, from.many(static_cast<std::size_t>(ggml_nelements(w.up_bias)), 0.1f));
  fill(w.down_bias, from.many(static_cast<std::size_t>(ggml_nelements(w.down_bias)), 0.1f));
  return w;
}

ggml_tensor* named(ggml_tensor* tensor, const char* name) {
  return ggml_format_name(tensor, "%s-3", name);
}

struct built {
  ggml_cgraph* graph;
  ggml_tensor *input, *logits, *output;
};

/// The nodes of one layer under the names and in the order that llama.cpp gives them.
built build(ggml_context* g, const layer_case& c, const moe_weights& w, int tokens) {
  built b = {};
  b.graph = ggml_new_graph_custom(g, 256, false);
  b.input = ggml_new_tensor_2d(g, GGML_TYPE_F32, width, tokens);
  ggml_set_input(b.input);
  ggml_tensor* x = ggml_scale(g, b.input, 1.0f);  // something that the CPU does first
  b.logits = named(ggml_mul_mat(g, w.router, x), "ffn_moe_logits");
  ggml_tensor* probs = b.logits;
  if (c.kind == gating_kind::softmax) probs = ggml_soft_max(g, b.logits);
  if (c.kind == gating_kind::sigmoid) probs = ggml_sigmoid(g, b.logits);
  if (c.kind == gating_kind::sqrt_softplus) probs = ggml_sqrt(g, ggml_softplus(g, b.logits));
  if (probs != b.logits) named(probs, "ffn_moe_probs");
  ggml_tensor* selection = probs;
  if (c.bias) selection = named(ggml_add(g, probs, w.bias), "ffn_moe_probs_biased");
  if (c.groups > 1) {
    const int size = c.experts / c.groups;
    ggml_tensor* grouped = ggml_reshape_3d(g, selection, size, c.groups, tokens);
    ggml_tensor* best = ggml_argsort_top_k(g, grouped, 2);
    best = ggml_get_rows(g, ggml_reshape_4d(g, grouped, 1, size, c.groups, tokens), best);
    best = ggml_sum_rows(g, ggml_reshape_3d(g, best, 2, c.groups, tokens));
    best = ggml_reshape_2d(g, best, c.groups, tokens);
    ggml_tensor* chosen = named(ggml_argsort_top_k(g, best, c.used_groups), "ffn_moe_group_topk");
    selection = ggml_get_rows(g, grouped, chosen);
    selection = ggml_set_rows(g, ggml_fill(g, grouped, -INFINITY), selection, chosen);
    selection = named(ggml_reshape_2d(g, selection, c.experts, tokens), "ffn_moe_probs_masked");
  }
  ggml_tensor* ids = ggml_argsort_top_k(g, selection, c.top_k);
  named(ids->src[0], "ffn_moe_argsort");
  named(ids, "ffn_moe_topk");
  probs = ggml_reshape_3d(g, probs, 1, c.experts, tokens);
  ggml_tensor* weights = named(ggml_get_rows(g, probs, ids), "ffn_moe_weights");
  if (c.kind == gating_kind::top_k_softmax) {
    weights = ggml_soft_max(g, ggml_reshape_2d(g, weights, c.top_k, tokens));
    weights = named(ggml_reshape_3d(g, weights, 1, c.top_k, tokens), "ffn_moe_weights_softmax");
  } else if (c.renormalize) {
    weights = ggml_reshape_2d(g, weights, c.top_k, tokens);
    ggml_tensor* sum = named(ggml_sum_rows(g, weights), "ffn_moe_weights_sum");
    sum = named(ggml_clamp(g, sum, 6.103515625e-5f, INFINITY), "ffn_moe_weights_sum_clamped");
    weights = named(ggml_div(g, weights, sum), "ffn_moe_weights_norm");
    weights = ggml_reshape_3d(g, weights, 1, c.top_k, tokens);
  }
  if (c.scale != 1.0f) weights = named(ggml_scale(g, weights, c.scale), "ffn_moe_weights_scaled");
  ggml_build_forward_expand(b.graph, weights);

  ggml_tensor* row = ggml_reshape_3d(g, x, width, 1, tokens);
  ggml_tensor *up = nullptr, *gate = nullptr;
  if (c.fused) {
    ggml_tensor* both = named(ggml_mul_mat_id(g, w.gate_up, row, ids), "ffn_moe_gate_up");
    gate = ggml_view_3d(g, both, inner, c.top_k, tokens, both->nb[1], both->nb[2], 0);
    up = ggml_view_3d(g, both, inner, c.top_k, tokens, both->nb[1], both->nb[2],
                      inner * both->nb[0]);
    named(gate, "ffn_moe_gate");
    named(up, "ffn_moe_up");
  } else {
    up = named(ggml_mul_mat_id(g, w.up, row, ids), "ffn_moe_up");
    if (c.expert_bias) up = named(ggml_add_id(g, up, w.up_bias, ids), "ffn_moe_up_biased");
    gate = named(ggml_mul_mat_id(g, w.gate, row, ids), "ffn_moe_gate");
  }
  ggml_tensor* out = named(ggml_swiglu_split(g, gate, up), "ffn_moe_swiglu");
  out = named(ggml_mul_mat_id(g, w.down, out, ids), "ffn_moe_down");
  if (c.expert_bias) out = named(ggml_add_id(g, out, w.down_bias, ids), "ffn_moe_down_biased");
  out = named(ggml_mul(g, out, weights), "ffn_moe_weighted");
  ggml_build_forward_expand(b.graph, out);
  std::vector<ggml_tensor*> slots;
  for (int j = 0; j < c.top_k; ++j) {
    slots.push_back(
        ggml_view_2d(g, out, width, tokens, out->nb[2], static_cast<std::size_t>(j) * out->nb[1]));
    ggml_build_forward_expand(b.graph, slots.back());
  }
  ggml_tensor* sum = slots[0];
  for (int j = 1; j < c.top_k; ++j) {
    sum = ggml_add(g, sum, slots[static_cast<std::size_t>(j)]);
    ggml_build_forward_expand(b.graph, sum);
  }
  named(sum, "ffn_moe_out");
  b.output = ggml_scale(g, sum, 1.0f);
  ggml_set_output(b.output);
  ggml_build_forward_expand(b.graph, b.output);
  return b;
}

/// The layer's output for tokens of `input` [tokens, width].
std::vector<float> run(const layer_case& c, const moe_weights& w, const float* input, int tokens,
                       std::vector<ggml_backend_t> backends) {
  const ggml_init_params params = {
      512 * ggml_tensor_overhead() + ggml_graph_overhead_custom(256, false), nullptr, true};
  ggml_context* const context = ggml_init(params);
  const built b = build(context, c, w, tokens);
  ggml_backend_sched_t sched = ggml_backend_sched_new(
      backends.data(), nullptr, static_cast<int>(backends.size()), 512, false, true);
  std::vector<float> output(static_cast<std::size_t>(width * tokens));
  if (ggml_backend_sched_alloc_graph(sched, b.graph)) {
    ggml_backend_tensor_set(b.input, input, 0, ggml_nbytes(b.input));
    expect(ggml_backend_sched_graph_compute(sched, b.graph) == GGML_STATUS_SUCCESS,
           std::string(c.name) + ": the graph was not computed");
    ggml_backend_tensor_get(b.output, output.data(), 0, output.size() * sizeof(float));
  } else {
    expect(false, std::string(c.name) + ": the graph was not allocated");
  }
  ggml_backend_sched_free(sched);
  ggml_free(context);
  return output;
}

std::vector<double> product(const std::vector<float>& matrices, int expert, int rows, int columns,
                            const double* x) {
  std::vector<double> y(static_cast<std::size_t>(rows), 0.0);
  const float* matrix = matrices.data() + static_cast<std::ptrdiff_t>(expert) * rows * columns;
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < columns; ++i)
      y[static_cast<std::size_t>(r)] += static_cast<double>(matrix[r * columns + i]) * x[i];
  return y;
}

/// In double, by the library's routing of the logits: ids, weights and counts.
struct reference {
  std::vector<double> output;
  int fewer = 0;
};
reference compute(const layer_case& c, const moe_weights& w, const float* input, int tokens,
                  const std::string& policy) {
  adaptive_k::gating model;
  model.kind = c.kind;
  model.num_experts = c.experts;
  model.top_k = c.top_k;
  model.renormalize = c.renormalize;
  model.selection_bias = c.bias;
  model.routed_scaling_factor = c.scale;
  model.n_group = c.groups;
  model.topk_group = c.used_groups;
  const adaptive_k::router router(model, adaptive_k::parse_policy(policy, model).layers.front());
  const std::vector<float> matrix = floats_of(w.router), bias = floats_of(w.bias);
  std::vector<float> logits;
  for (int t = 0; t < tokens; ++t) {
    const std::vector<double> x(input + t * width, input + (t + 1) * width);
    for (const double value : product(matrix, 0, c.experts, width, x.data()))
      logits.push_back(static_cast<float>(value));
  }
  adaptive_k::routing_extras extras;
  if (c.bias) extras.routing_bias = bias.data();
  const adaptive_k::routed_batch routed = router.route(
      0, adaptive_k::logits_view<float>{logits.data(), tokens, c.experts}, nullptr, extras);
  expect(routed.result.ok(), routed.result.ok() ? "" : routed.result.message());
  const std::vector<float> gate = floats_of(w.gate), up = floats_of(w.up), down = floats_of(w.down),
                           both = floats_of(w.gate_up), up_bias = floats_of(w.up_bias),
                           down_bias = floats_of(w.down_bias);
  reference result;
  result.output.assign(static_cast<std::size_t>(tokens * width), 0.0);
  for (int t = 0; t < tokens; ++t) {
    const auto token = static_cast<std::size_t>(t);
    result.fewer += routed.topk_counts[token] < c.top_k ? 1 : 0;
    const std::vector<double> x(input + t * width, input + (t + 1) * width);
    for (int j = 0; j < routed.topk_counts[token]; ++j) {
      const auto slot = token * static_cast<std::size_t>(c.top_k) + static_cast<std::size_t>(j);
      const int e = routed.topk_ids[slot];
      std::vector<double> g, u;
      if (c.fused) {
        const std::vector<double> all = product(both, e, 2 * inner, width, x.data());
        g = std::vector<double>(all.begin(), all.begin() + inner);
        u = std::vector<double>(all.begin() + inner, all.end());
      } else {
        g = product(gate, e, inner, width, x.data());
        u = product(up, e, inner, width, x.data());
      }
      for (std::size_t i = 0; i < u.size(); ++i) {
        if (c.expert_bias)
          u[i] += static_cast<double>(up_bias[static_cast<std::size_t>(e) * inner + i]);
        u[i] *= g[i] / (1.0 + std::exp(-g[i]));
      }
      std::vector<double> y = product(down, e, width, inner, u.data());
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (c.expert_bias)
          y[i] += static_cast<double>(down_bias[static_cast<std::size_t>(e) * width + i]);
        result.output[token * width + i] += y[i] * static_cast<double>(routed.topk_weights[slot]);
      }
    }
  }
  return result;
}

double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  double squares = 0.0, size = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    squares += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(squares / size);
}

void check(const layer_case& c, const std::string& policy, ggml_backend_t plugin,
           ggml_backend_t cpu) {
  constexpr int tokens = 37;
  const moe_weights w = make_weights(c, cpu);
  const std::vector<float> input = random_floats(11).many(tokens * width, 1.0f);
  const std::vector<float> batch = run(c, w, input.data(), tokens, {plugin, cpu});
  for (int t = 0; t < tokens; ++t) {
    const std::vector<float> alone = run(c, w, input.data() + t * width, 1, {plugin, cpu});
    // Not to the bit: the router's own product rounds otherwise in a batch.
    const std::vector<double> in_batch(batch.begin() + t * width, batch.begin() + (t + 1) * width);
    expect(relative_error(alone, in_batch) < 2e-6,
           std::string(c.name) + ": token " + std::to_string(t) + " alone differs from the batch");
  }
  const reference expected = compute(c, w, input.data(), tokens, policy);
  const double error = relative_error(batch, expected.output);
  // Activations are rounded to 8 bits where the weights are in blocks.
  expect(error < (c.type == GGML_TYPE_F32 ? 1e-5 : 2e-2),
         std::string(c.name) + ": relative error " + std::to_string(error));
  expect(expected.fewer > tokens / 4, std::string(c.name) + ": hardly any token has fewer experts");
  const std::vector<float> stock = run(c, w, input.data(), tokens, {cpu});
  expect(std::memcmp(stock.data(), batch.data(), batch.size() * sizeof(float)) != 0,
         std::string(c.name) + ": fewer experts change nothing");
  std::printf("%-22s %2d of %d tokens with fewer, relative error %.1e\n", c.name, expected.fewer,
              tokens, error);
  ggml_backend_buffer_free(w.buffer);
  ggml_free(w.context);
}

/// llama.cpp sends products of 32 tokens and more to a GPU where there is one.
void check_claims_beside_a_gpu(const layer_case& c, ggml_backend_t plugin, ggml_backend_t cpu) {
  static ggml_backend_device gpu = {};
  gpu.iface.get_type = [](ggml_backend_dev_t) -> enum ggml_backend_dev_type {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
  };
  gpu.iface.get_name = [](ggml_backend_dev_t) { return "made-up GPU"; };
  gpu.iface.get_description = gpu.iface.get_name;
  ggml_backend_device_register(&gpu);
  const moe_weights w = make_weights(c, cpu);
  for (const int tokens : {1, 31, 32, 512}) {
    const ggml_init_params params = {
        512 * ggml_tensor_overhead() + ggml_graph_overhead_custom(256, false), nullptr, true};
    ggml_context* const context = ggml_init(params);
    const built b = build(context, c, w, tokens);
    int products = 0;
    for (int i = 0; i < ggml_graph_n_nodes(b.graph); ++i) {
      const ggml_tensor* const node = ggml_graph_node(b.graph, i);
      if (node->op != GGML_OP_MUL_MAT_ID) continue;
      ++products;
      expect(ggml_backend_supports_op(plugin, node) == (tokens < 32),
             std::to_string(tokens) + " tokens beside a GPU: " + node->name);
    }
    expect(products == 3, "three products in a layer");
    ggml_free(context);
  }
  ggml_backend_buffer_free(w.buffer);
  ggml_free(w.context);
}

}  // namespace

int main(int argc, char** argv) {
  const char* const policy = std::getenv("ADAPTIVE_K");
  if (argc != 3 || policy == nullptr) {
    std::fputs("usage: ADAPTIVE_K=POLICY ggml_graph_test PLUGIN.so THREADS|gpu\n", stderr);
    return 2;
  }
  ggml_backend_load_all();
  const ggml_backend_reg_t registry = ggml_backend_load(argv[1]);
  if (registry == nullptr) return 1;
  ggml_backend_t plugin = ggml_backend_dev_init(ggml_backend_reg_dev_get(registry, 0), nullptr);
  ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
  if (plugin == nullptr || cpu == nullptr) return 1;
  for (ggml_backend_t backend : {plugin, cpu}) {
    const auto set =
        reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)),
            "ggml_backend_set_n_threads"));
    set(backend, std::max(1, std::atoi(argv[2])));
  }
  const ggml_type f32 = GGML_TYPE_F32;
  // Numbers of experts differ: the plug-in takes layers of one shape for one model.
  const layer_case cases[] = {
      {"softmax", gating_kind::softmax, 16, 4, false, false, false, false, 1, 1, 1.0f, f32},
      {"softmax, renormalised", gating_kind::softmax, 17, 6, true, false, false, false, 1, 1, 1.0f,
       f32},
      {"fused gate and up", gating_kind::softmax, 18, 4, true, false, true, false, 1, 1, 1.0f, f32},
      {"biases of experts", gating_kind::top_k_softmax, 19, 4, true, false, false, true, 1, 1, 1.0f,
       f32},
      {"sigmoid and bias", gating_kind::sigmoid, 20, 6, true, true, false, false, 1, 1, 2.5f, f32},
      {"groups", gating_kind::sigmoid, 32, 6, true, true, false, false, 8, 4, 2.5f, f32},
      {"sqrt-softplus", gating_kind::sqrt_softplus, 21, 6, true, false, false, false, 1, 1, 1.0f,
       f32},
      {"q8_0", gating_kind::softmax, 22, 6, true, false, false, false, 1, 1, 1.0f, GGML_TYPE_Q8_0},
      {"q4_K", gating_kind::softmax, 23, 6, true, false, false, false, 1, 1, 1.0f, GGML_TYPE_Q4_K},
      {"q4_K fused", gating_kind::softmax, 24, 6, true, false, true, false, 1, 1, 1.0f,
       GGML_TYPE_Q4_K},
  };
  if (std::strcmp(argv[2], "gpu") == 0)
    check_claims_beside_a_gpu(cases[0], plugin, cpu);
  else
    for (const layer_case& c : cases) check(c, policy, plugin, cpu);
  ggml_backend_free(plugin);
  ggml_backend_free(cpu);
  std::printf("%zu cases, %d failures\n", std::size(cases), failures);
  return failures == 0 ? 0 : 1;
}

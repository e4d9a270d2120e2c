// One mixture-of-experts layer: router logits, the routing call, and only the experts it asks for,
// beside those that every token shares.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/host/router.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "dense.hpp"
#include "mlp.hpp"

namespace moe_engine {

/// Chooses experts: called once per MoE layer and forward pass, with the layer's router logits
/// [T, E]; must fill `topk_ids` [T, K0], `topk_weights` [T, K0] and `topk_counts` [T] (`signal` is
/// null). Slots past k_t are not read. `extras` holds the layer's selection bias where the model
/// has one. A refusal ends the forward pass with an exception that holds its message. Any callable
/// of these arguments is one.
class route_function {
 public:
  template <class Route,
            std::enable_if_t<!std::is_same_v<std::decay_t<Route>, route_function>, int> = 0>
  // NOLINTNEXTLINE(google-explicit-constructor): as std::function
  route_function(Route route) : route_(std::move(route)) {}
  /// `route` reads the heads of the policies of `heads`, of which a copy is kept.
  template <class Route>
  route_function(Route route, const adaptive_k::router& heads)
      : route_(std::move(route)), heads_(heads) {}

  adaptive_k::status operator()(int layer, const adaptive_k::logits_view<float>& logits,
                                const adaptive_k::routing_output<>& output,
                                const adaptive_k::routing_extras& extras) const {
    return route_(layer, logits, output, extras);
  }
  /// The layer's policy where it has a router head: `logits.head` must then be given, the product
  /// of the router's input and `head`. Else null.
  const adaptive_k::distortion_ref* head(int layer) const {
    return heads_ && heads_->reads_head(layer) ? &heads_->policy(layer).distortion : nullptr;
  }

 private:
  std::function<adaptive_k::status(int, const adaptive_k::logits_view<float>&,
                                   const adaptive_k::routing_output<>&,
                                   const adaptive_k::routing_extras&)>
      route_;
  std::optional<adaptive_k::router> heads_;
};

/// The usual choice: `router.route`, adding to `metrics` where given, which must outlive the
/// result.
route_function route_with(const adaptive_k::router& router,
                          adaptive_k::routing_metrics* metrics = nullptr);

/// What the experts of a full-K pass put out, for calibration: a block of tokens of one layer.
struct expert_outputs {
  int layer = 0;
  std::int64_t num_tokens = 0;
  int top_k = 0;
  int hidden_size = 0;
  const float* logits = nullptr;    ///< [num_tokens, E], the router's
  const float* residual = nullptr;  ///< [num_tokens, H], what the routed experts' sum is added to:
                                    ///< the shared experts' output is in it
  const float* outputs = nullptr;   ///< [num_tokens, K0, H], each expert's own, before its weight
  const float* routing_bias = nullptr;  ///< [E], null where the model has none
  const float* input = nullptr;  ///< [num_tokens, H], what the router's matrix multiplies, or null
};

/// Sees every MoE layer of a forward pass, block of tokens after block of tokens, in their order.
/// Slots past k_t hold zeros.
using observe_function = std::function<void(const expert_outputs& block)>;

/// Buffers of a layer call, kept from call to call so that the long run allocates nothing. One per
/// thread that calls `moe_layer::forward`; any layer may use it. R is the sum of k_t.
struct moe_workspace {
  std::vector<float> logits;          // [T, E]
  std::vector<float> head;            // [T, K0 - 1], where a router head is asked for
  std::vector<std::int32_t> ids;      // [T, K0]
  std::vector<float> weights;         // [T, K0]
  std::vector<std::int32_t> counts;   // [T], k_t
  std::vector<std::int64_t> offsets;  // [E + 1], where each expert's rows begin
  std::vector<std::int64_t> tokens;   // [R], the token of each row, expert by expert
  std::vector<std::int64_t> rows;     // [T, K0], the row of each token's slot
  std::vector<std::int32_t> active;   // experts with rows, most rows first
  std::vector<float> inputs;          // [R, H]
  std::vector<float> activations;     // [R, F]
  std::vector<float> outputs;         // R * H floats, slice by slice
  std::vector<float> shared;          // [T, H], of the shared experts, if there are any
};

class moe_layer {
 public:
  /// Random weights of a real model's shape, for timing only; the same for the same seed. Without
  /// shared experts; a selection bias is 0.
  static moe_layer random(int hidden_size, int intermediate_size, const adaptive_k::gating& gating,
                          std::uint64_t seed);

  /// A layer without weights: give it a router and every expert before the first `forward`.
  moe_layer(int hidden_size, int intermediate_size, const adaptive_k::gating& gating);

  /// `bias` [E]: what selection adds to the scores, for a gating with selection_bias.
  void set_router(const float* weight /* [E, H] */, const float* bias = nullptr);
  /// What every token runs beside the experts that it is routed to; its output is multiplied by
  /// sigmoid(gate . x) where `gate` [H] is given.
  void set_shared_experts(gated_mlp experts, const float* gate = nullptr);
  /// HuggingFace's w1 (gate), w3 (up) [F, H] and w2 (down) [H, F]. Threads may set different
  /// experts at the same time.
  void set_expert(int expert, const float* w1, const float* w3, const float* w2);

  int hidden_size() const noexcept { return hidden_size_; }
  int intermediate_size() const noexcept { return intermediate_size_; }
  const adaptive_k::gating& gating() const noexcept { return gating_; }
  /// Bytes of one expert's weights as they are stored here.
  std::int64_t expert_bytes() const noexcept {
    return std::int64_t{12} * hidden_size_ * intermediate_size_;
  }

  /// output [T, H] = MoE(x [T, H]); the residual is not added. x and output must not overlap.
  /// `layer` is only passed on to `route`.
  void forward(int layer, const float* x, std::int64_t num_tokens, const route_function& route,
               float* output, moe_workspace& workspace) const;

  /// Shows what the last `forward` of `x` with this workspace computed. residual [T, H].
  void show(int layer, const float* x, const float* residual, std::int64_t num_tokens,
            const moe_workspace& workspace, const observe_function& observe) const;

 private:
  // Every matrix is cut into slices of its outputs, so that a single token's few experts keep all
  // cores busy.
  struct expert_weights {
    std::vector<dense> gate_up;  // a slice of w1 over the same slice of w3
    std::vector<dense> down;     // a slice of w2
  };

  void choose(int layer, const float* x, std::int64_t num_tokens, const route_function& route,
              moe_workspace& work) const;
  void multiply_head(int layer, const float* x, std::int64_t num_tokens,
                     const adaptive_k::distortion_ref& policy, moe_workspace& work) const;
  void group_by_expert(int layer, std::int64_t num_tokens, moe_workspace& work) const;
  void run_experts(const float* x, moe_workspace& work) const;
  void gather(int expert, const float* x, moe_workspace& work) const;
  void run_gate_up(int expert, std::int64_t slice, moe_workspace& work) const;
  void run_down(int expert, std::int64_t slice, moe_workspace& work) const;
  void combine(std::int64_t num_tokens, const moe_workspace& work, float* output) const;
  void add_shared(const float* x, std::int64_t num_tokens, moe_workspace& work,
                  float* output) const;

  int hidden_size_;
  int intermediate_size_;
  adaptive_k::gating gating_;
  dense router_;
  std::vector<float> bias_;  // [E], or empty
  std::optional<gated_mlp> shared_;
  std::vector<float> shared_gate_;  // [H], or empty
  std::vector<expert_weights> experts_;
};

}  // namespace moe_engine

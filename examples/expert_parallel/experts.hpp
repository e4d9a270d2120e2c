// Made-up tokens, routers and SwiGLU experts, the same on every machine and rank.
#pragma once

#include <cstdint>
#include <vector>

#include "placement.hpp"

namespace expert_parallel {

struct model_shape {
  int num_experts = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
};

/// x [H] of a token of the whole job's batch, in -1..1.
void make_token(std::int64_t step, std::int64_t token, int hidden_size, float* x);

/// One layer: the router, which every rank has, and the experts in this rank's slots.
class made_up_layer {
 public:
  made_up_layer(const model_shape& shape, int layer, const placement& where, int rank);

  /// logits [rows, E] of x [rows, H].
  void router_logits(const float* x, std::int64_t rows, float* logits) const;
  /// outputs [rows, H] of inputs [rows, H], a row at a time.
  void run(int slot, const float* inputs, std::int64_t rows, float* outputs) const;

  /// Weights, as a device takes them: [H, E], and slot by slot [H, F], [H, F] and [F, H].
  const std::vector<float>& router() const noexcept { return router_; }
  std::vector<float> all_gates() const { return all(&expert::gate); }
  std::vector<float> all_ups() const { return all(&expert::up); }
  std::vector<float> all_downs() const { return all(&expert::down); }

 private:
  struct expert {
    std::vector<float> gate, up;  // [H, F]
    std::vector<float> down;      // [F, H]
  };

  std::vector<float> all(std::vector<float> expert::*weights) const {
    std::vector<float> values;
    for (const expert& each : held_)
      values.insert(values.end(), (each.*weights).begin(), (each.*weights).end());
    return values;
  }

  model_shape shape_;
  int first_slot_;
  std::vector<float> router_;  // [H, E]
  std::vector<expert> held_;   // of this rank's slots
};

}  // namespace expert_parallel

#include "experts.hpp"

#include <adaptive_k/core/math.hpp>
#include <cmath>
#include <cstddef>

namespace expert_parallel {
namespace {

/// Multiples of 2^-15 in -scale..scale, of a stream of its own for each seed.
void fill(float* values, std::size_t count, float scale, std::uint64_t seed) {
  std::uint64_t state = (seed + 1) * 0x9E3779B97F4A7C15u;
  for (std::size_t i = 0; i < count; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    values[i] = scale * (static_cast<float>(state >> 48) - 32768.0f) / 32768.0f;
  }
}

std::vector<float> made(std::int64_t count, float scale, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  fill(values.data(), values.size(), scale, seed);
  return values;
}

/// y [outputs] = x [inputs] W [inputs, outputs], added up in order of the inputs. A real engine
/// calls a grouped product here; to keep the bits it must be one whose rows do not depend on how
/// many there are.
void multiply(const float* x, const float* weight, int inputs, int outputs, float* y) {
  for (int o = 0; o < outputs; ++o) y[o] = 0.0f;
  for (int i = 0; i < inputs; ++i) {
    const float* row = weight + std::int64_t{i} * outputs;
    for (int o = 0; o < outputs; ++o) y[o] += x[i] * row[o];
  }
}

}  // namespace

void make_token(std::int64_t step, std::int64_t token, int hidden_size, float* x) {
  const auto seed = static_cast<std::uint64_t>(step) << 40 | static_cast<std::uint64_t>(token) << 1;
  fill(x, static_cast<std::size_t>(hidden_size), 1.0f, seed + 1);
}

made_up_layer::made_up_layer(const model_shape& shape, int layer, const placement& where, int rank)
    : shape_(shape), first_slot_(where.first_slot(rank)) {
  const std::int64_t h = shape.hidden_size, f = shape.intermediate_size;
  const auto spread = [](std::int64_t inputs) {
    return 1.7f / std::sqrt(static_cast<float>(inputs));
  };
  const std::uint64_t seed = static_cast<std::uint64_t>(layer + 1) << 32;
  router_ = made(h * shape.num_experts, 5.0f * spread(h), seed);
  for (int slot = first_slot_; slot < where.first_slot(rank + 1); ++slot) {
    const std::uint64_t own = seed + 4 * static_cast<std::uint64_t>(where.expert_of(slot) + 1);
    held_.push_back({made(h * f, spread(h), own + 1), made(h * f, spread(h), own + 2),
                     made(f * h, spread(f), own + 3)});
  }
}

void made_up_layer::router_logits(const float* x, std::int64_t rows, float* logits) const {
  for (std::int64_t row = 0; row < rows; ++row)
    multiply(x + row * shape_.hidden_size, router_.data(), shape_.hidden_size, shape_.num_experts,
             logits + row * shape_.num_experts);
}

void made_up_layer::run(int slot, const float* inputs, std::int64_t rows, float* outputs) const {
  const expert& weights = held_[static_cast<std::size_t>(slot - first_slot_)];
  const int hidden = shape_.hidden_size, width = shape_.intermediate_size;
  std::vector<float> gate(static_cast<std::size_t>(width)), up(gate.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* x = inputs + row * hidden;
    multiply(x, weights.gate.data(), hidden, width, gate.data());
    multiply(x, weights.up.data(), hidden, width, up.data());
    for (std::size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] * adaptive_k::math::sigmoid(gate[i]) * up[i];
    multiply(gate.data(), weights.down.data(), width, hidden, outputs + row * hidden);
  }
}

}  // namespace expert_parallel

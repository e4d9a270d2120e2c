#include "moe_layer.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.hpp"

namespace moe_engine {
namespace {

constexpr int gate_up_slice = 256;  // intermediate units of a task; twice as many outputs
constexpr int down_slice = 512;     // hidden units of a task

constexpr std::int64_t num_slices(int size, int slice) {
  return (size + slice - 1) / slice;
}

using float_array = Eigen::Map<Eigen::ArrayXf>;
using const_float_array = Eigen::Map<const Eigen::ArrayXf>;

/// Uniform values of variance `variance`, from integers, so that every build makes the same.
void fill_random(std::vector<float>& values, double variance, std::uint64_t seed) {
  const auto scale = static_cast<float>(std::sqrt(3.0 * variance) / 8388608.0);
  std::uint64_t state = (seed + 1) * 0x9E3779B97F4A7C15u;
  for (float& value : values) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 40) - 8388608) * scale;
  }
}

}  // namespace

route_function route_with(const adaptive_k::router& router, adaptive_k::routing_metrics* metrics) {
  return {[router, metrics](int layer, const adaptive_k::logits_view<float>& logits,
                            const adaptive_k::routing_output<>& output,
                            const adaptive_k::routing_extras& extras) {
            return router.route(layer, logits, output, metrics, extras);
          },
          router};
}

moe_layer::moe_layer(int hidden_size, int intermediate_size, const adaptive_k::gating& gating)
    : hidden_size_(hidden_size),
      intermediate_size_(intermediate_size),
      gating_(gating),
      experts_(static_cast<std::size_t>(gating.num_experts)) {}

moe_layer moe_layer::random(int hidden_size, int intermediate_size,
                            const adaptive_k::gating& gating, std::uint64_t seed) {
  moe_layer layer(hidden_size, intermediate_size, gating);
  const auto hidden = static_cast<std::size_t>(hidden_size);
  const auto size = hidden * static_cast<std::size_t>(intermediate_size);
  const std::uint64_t first_seed = seed << 20;
  std::vector<float> router(static_cast<std::size_t>(gating.num_experts) * hidden);
  fill_random(router, 1.0 / hidden_size, first_seed);
  const std::vector<float> no_bias(static_cast<std::size_t>(gating.num_experts), 0.0f);
  layer.set_router(router.data(), gating.selection_bias ? no_bias.data() : nullptr);
  parallel_for(gating.num_experts, [&](std::int64_t expert) {
    std::vector<float> w1(size);
    std::vector<float> w3(size);
    std::vector<float> w2(size);
    const std::uint64_t own_seed = first_seed + 4 * static_cast<std::uint64_t>(expert);
    fill_random(w1, 1.0 / hidden_size, own_seed + 1);
    fill_random(w3, 1.0 / hidden_size, own_seed + 2);
    fill_random(w2, 1.0 / intermediate_size, own_seed + 3);
    layer.set_expert(static_cast<int>(expert), w1.data(), w3.data(), w2.data());
  });
  return layer;
}

void moe_layer::set_router(const float* weight, const float* bias) {
  router_ = dense(weight, gating_.num_experts, hidden_size_);
  bias_.clear();
  if (bias != nullptr) bias_.assign(bias, bias + gating_.num_experts);
}

void moe_layer::set_shared_experts(gated_mlp experts, const float* gate) {
  shared_ = std::move(experts);
  shared_gate_.clear();
  if (gate != nullptr) shared_gate_.assign(gate, gate + hidden_size_);
}

void moe_layer::set_expert(int index, const float* w1, const float* w3, const float* w2) {
  expert_weights& target = experts_.at(static_cast<std::size_t>(index));
  target = {};
  std::vector<float> both;
  for (int begin = 0; begin < intermediate_size_; begin += gate_up_slice) {
    const int size = std::min(gate_up_slice, intermediate_size_ - begin);
    const std::int64_t from = std::int64_t{begin} * hidden_size_;
    const std::int64_t to = from + std::int64_t{size} * hidden_size_;
    both.assign(w1 + from, w1 + to);
    both.insert(both.end(), w3 + from, w3 + to);
    target.gate_up.emplace_back(both.data(), 2 * size, hidden_size_);
  }
  for (int begin = 0; begin < hidden_size_; begin += down_slice) {
    const int size = std::min(down_slice, hidden_size_ - begin);
    target.down.emplace_back(w2 + std::int64_t{begin} * intermediate_size_, size,
                             intermediate_size_);
  }
}

void moe_layer::forward(int layer, const float* x, std::int64_t num_tokens,
                        const route_function& route, float* output, moe_workspace& work) const {
  if (num_tokens == 0) return;
  choose(layer, x, num_tokens, route, work);
  group_by_expert(layer, num_tokens, work);
  run_experts(x, work);
  combine(num_tokens, work, output);
  add_shared(x, num_tokens, work, output);
}

// Router logits, then the caller's routing: the one place where an engine meets adaptive_k.
void moe_layer::choose(int layer, const float* x, std::int64_t num_tokens,
                       const route_function& route, moe_workspace& work) const {
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto slots = tokens * static_cast<std::size_t>(gating_.top_k);
  work.logits.resize(tokens * static_cast<std::size_t>(gating_.num_experts));
  work.ids.resize(slots);
  work.weights.resize(slots);
  work.counts.resize(tokens);
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    router_.multiply(x + begin * hidden_size_, end - begin,
                     work.logits.data() + begin * gating_.num_experts);
  });
  adaptive_k::logits_view<float> logits = {work.logits.data(), num_tokens, gating_.num_experts};
  if (const adaptive_k::distortion_ref* policy = route.head(layer)) {
    multiply_head(layer, x, num_tokens, *policy, work);
    logits.head = work.head.data();
  }
  adaptive_k::routing_extras extras;
  if (!bias_.empty()) extras.routing_bias = bias_.data();
  const adaptive_k::status status =
      route(layer, logits, {work.ids.data(), work.weights.data(), work.counts.data()}, extras);
  if (!status.ok()) {
    throw std::runtime_error("routing of layer " + std::to_string(layer) + ": " + status.message());
  }
}

// Apart from the router's own product, whose bits must not depend on the policy; an engine for
// which speed counts appends the rows to the router's matrix.
void moe_layer::multiply_head(int layer, const float* x, std::int64_t num_tokens,
                              const adaptive_k::distortion_ref& policy, moe_workspace& work) const {
  if (policy.hidden_size != hidden_size_)
    throw std::runtime_error("routing of layer " + std::to_string(layer) +
                             ": the policy's router head is for a hidden size of " +
                             std::to_string(policy.hidden_size) + ", expected the model's, " +
                             std::to_string(hidden_size_));
  const int columns = gating_.top_k - 1;
  work.head.resize(static_cast<std::size_t>(num_tokens * columns));
  parallel_ranges(num_tokens, row_block, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      const const_float_array input(x + t * hidden_size_, hidden_size_);
      for (int j = 0; j < columns; ++j)
        work.head[static_cast<std::size_t>(t * columns + j)] =
            (input * const_float_array(policy.head + std::int64_t{j} * hidden_size_, hidden_size_))
                .sum();
    }
  });
}

// A counting sort: an expert's tokens become consecutive rows. What was dropped has no row.
void moe_layer::group_by_expert(int layer, std::int64_t num_tokens, moe_workspace& work) const {
  const std::int64_t top_k = gating_.top_k;
  work.offsets.assign(static_cast<std::size_t>(gating_.num_experts) + 1, 0);
  work.rows.resize(work.ids.size());
  std::int64_t* offsets = work.offsets.data();
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const int count = work.counts[static_cast<std::size_t>(t)];
    if (count < 0 || count > top_k) {
      throw std::runtime_error("routing of layer " + std::to_string(layer) + ": topk_counts[" +
                               std::to_string(t) + "] is " + std::to_string(count) +
                               ", expected 0.." + std::to_string(top_k));
    }
    for (std::int64_t slot = t * top_k; slot < t * top_k + count; ++slot) {
      const int id = work.ids[static_cast<std::size_t>(slot)];
      if (id < 0 || id >= gating_.num_experts) {
        throw std::runtime_error("routing of layer " + std::to_string(layer) + ": topk_ids of " +
                                 "token " + std::to_string(t) + " holds " + std::to_string(id) +
                                 ", expected 0.." + std::to_string(gating_.num_experts - 1));
      }
      ++offsets[id + 1];
    }
  }
  work.active.clear();
  for (int e = 0; e < gating_.num_experts; ++e) {
    if (offsets[e + 1] != 0) work.active.push_back(e);
    offsets[e + 1] += offsets[e];
  }
  work.tokens.resize(static_cast<std::size_t>(offsets[gating_.num_experts]));
  // Large tasks first, so that no core ends with one while the others wait.
  std::stable_sort(work.active.begin(), work.active.end(), [&](int a, int b) {
    return offsets[a + 1] - offsets[a] > offsets[b + 1] - offsets[b];
  });
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const int count = work.counts[static_cast<std::size_t>(t)];
    for (std::int64_t slot = t * top_k; slot < t * top_k + count; ++slot) {
      std::int64_t& next = offsets[work.ids[static_cast<std::size_t>(slot)]];
      work.tokens[static_cast<std::size_t>(next)] = t;
      work.rows[static_cast<std::size_t>(slot)] = next++;
    }
  }
  // Each offset has moved on to its expert's end, which is where the next expert begins.
  std::copy_backward(offsets, offsets + gating_.num_experts, offsets + gating_.num_experts + 1);
  offsets[0] = 0;
}

// Few experts are cut into slices that all cores share; many are left whole, so that a core finds
// an expert's rows in its own cache from the first product to the last. The products are the same.
void moe_layer::run_experts(const float* x, moe_workspace& work) const {
  const auto num_active = static_cast<std::int64_t>(work.active.size());
  const std::size_t num_rows = work.tokens.size();
  work.inputs.resize(num_rows * static_cast<std::size_t>(hidden_size_));
  work.activations.resize(num_rows * static_cast<std::size_t>(intermediate_size_));
  work.outputs.resize(num_rows * static_cast<std::size_t>(hidden_size_));
  const std::int64_t gate_up_slices = num_slices(intermediate_size_, gate_up_slice);
  const std::int64_t down_slices = num_slices(hidden_size_, down_slice);
  const auto expert_at = [&](std::int64_t i) { return work.active[static_cast<std::size_t>(i)]; };
  if (num_active >= 4 * num_threads()) {
    parallel_for(num_active, [&](std::int64_t i) {
      gather(expert_at(i), x, work);
      for (std::int64_t slice = 0; slice < gate_up_slices; ++slice)
        run_gate_up(expert_at(i), slice, work);
      for (std::int64_t slice = 0; slice < down_slices; ++slice)
        run_down(expert_at(i), slice, work);
    });
  } else {
    parallel_for(num_active, [&](std::int64_t i) { gather(expert_at(i), x, work); });
    parallel_for(num_active * gate_up_slices, [&](std::int64_t task) {
      run_gate_up(expert_at(task / gate_up_slices), task % gate_up_slices, work);
    });
    parallel_for(num_active * down_slices, [&](std::int64_t task) {
      run_down(expert_at(task / down_slices), task % down_slices, work);
    });
  }
}

void moe_layer::gather(int expert, const float* x, moe_workspace& work) const {
  const auto e = static_cast<std::size_t>(expert);
  for (std::int64_t row = work.offsets[e]; row < work.offsets[e + 1]; ++row)
    std::copy_n(x + work.tokens[static_cast<std::size_t>(row)] * hidden_size_, hidden_size_,
                work.inputs.data() + row * hidden_size_);
}

void moe_layer::run_gate_up(int expert, std::int64_t slice, moe_workspace& work) const {
  const auto e = static_cast<std::size_t>(expert);
  const dense& weight = experts_[e].gate_up[static_cast<std::size_t>(slice)];
  const std::int64_t begin = work.offsets[e];
  const std::int64_t rows = work.offsets[e + 1] - begin;
  const int size = weight.outputs() / 2;
  thread_local std::vector<float> gate_up;  // [rows, 2 * size]
  gate_up.resize(std::max(gate_up.size(), static_cast<std::size_t>(rows * 2 * size)));
  weight.multiply(work.inputs.data() + begin * hidden_size_, rows, gate_up.data());
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up.data() + row * 2 * size;
    swiglu(gate, gate + size, size,
           work.activations.data() + (begin + row) * intermediate_size_ + slice * gate_up_slice);
  }
}

void moe_layer::run_down(int expert, std::int64_t slice, moe_workspace& work) const {
  const auto e = static_cast<std::size_t>(expert);
  const dense& weight = experts_[e].down[static_cast<std::size_t>(slice)];
  const std::int64_t begin = work.offsets[e];
  const auto num_rows = static_cast<std::int64_t>(work.tokens.size());
  weight.multiply(work.activations.data() + begin * intermediate_size_, work.offsets[e + 1] - begin,
                  work.outputs.data() + slice * down_slice * num_rows + begin * weight.outputs());
}

// Each token adds up its own rows in the order of its slots: the same bits for any thread count.
void moe_layer::combine(std::int64_t num_tokens, const moe_workspace& work, float* output) const {
  const auto num_rows = static_cast<std::int64_t>(work.tokens.size());
  parallel_ranges(num_tokens, row_block, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t slots = t * gating_.top_k;
      const int count = work.counts[static_cast<std::size_t>(t)];
      for (int begin = 0; begin < hidden_size_; begin += down_slice) {
        const int size = std::min(down_slice, hidden_size_ - begin);
        const float* slice = work.outputs.data() + begin * num_rows;
        float_array sum(output + t * hidden_size_ + begin, size);
        sum.setZero();
        for (std::int64_t slot = slots; slot < slots + count; ++slot)
          sum += work.weights[static_cast<std::size_t>(slot)] *
                 const_float_array(slice + work.rows[static_cast<std::size_t>(slot)] * size, size);
      }
    }
  });
}

// No router decides these, so they run whatever K is.
void moe_layer::add_shared(const float* x, std::int64_t num_tokens, moe_workspace& work,
                           float* output) const {
  if (!shared_) return;
  work.shared.resize(static_cast<std::size_t>(num_tokens * hidden_size_));
  shared_->forward(x, num_tokens, work.shared.data());
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    float_array own(work.shared.data() + t * hidden_size_, hidden_size_);
    if (!shared_gate_.empty()) {
      const float gate = (const_float_array(x + t * hidden_size_, hidden_size_) *
                          const_float_array(shared_gate_.data(), hidden_size_))
                             .sum();
      own *= 1.0f / (1.0f + std::exp(-gate));
    }
    float_array(output + t * hidden_size_, hidden_size_) += own;
  }
}

void moe_layer::show(int layer, const float* x, const float* residual, std::int64_t num_tokens,
                     const moe_workspace& work, const observe_function& observe) const {
  const std::int64_t top_k = gating_.top_k;
  const auto num_rows = static_cast<std::int64_t>(work.tokens.size());
  std::vector<float> outputs(static_cast<std::size_t>(row_block * top_k * hidden_size_));
  std::vector<float> base;  // residual and shared experts
  for (std::int64_t first = 0; first < num_tokens; first += row_block) {
    const std::int64_t count = std::min(row_block, num_tokens - first);
    std::fill(outputs.begin(), outputs.end(), 0.0f);
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t slots = (first + t) * top_k;
      const int kept = work.counts[static_cast<std::size_t>(first + t)];
      for (std::int64_t j = 0; j < kept; ++j) {
        const std::int64_t row = work.rows[static_cast<std::size_t>(slots + j)];
        float* target = outputs.data() + (t * top_k + j) * hidden_size_;
        for (int begin = 0; begin < hidden_size_; begin += down_slice) {
          const int size = std::min(down_slice, hidden_size_ - begin);
          std::copy_n(work.outputs.data() + begin * num_rows + row * size, size, target + begin);
        }
      }
    }
    const float* added_to = residual + first * hidden_size_;
    if (shared_) {
      base.assign(added_to, added_to + count * hidden_size_);
      const auto size = static_cast<Eigen::Index>(base.size());
      float_array(base.data(), size) +=
          const_float_array(work.shared.data() + first * hidden_size_, size);
      added_to = base.data();
    }
    observe({layer, count, gating_.top_k, hidden_size_,
             work.logits.data() + first * gating_.num_experts, added_to, outputs.data(),
             bias_.empty() ? nullptr : bias_.data(), x + first * hidden_size_});
  }
}

}  // namespace moe_engine

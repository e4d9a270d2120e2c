// Batches of logits for the kernels' tests.
#pragma once

#include <cstdint>
#include <vector>

#include "host/policies.hpp"
#include "host_twin.hpp"

namespace twin {

template <class Logit>
batch<Logit> make_batch(inputs::sequence& from, const gating& g, std::int64_t num_tokens, int gap) {
  batch<Logit> made;
  made.model = g;
  made.num_tokens = num_tokens;
  made.row_stride = g.num_experts + gap;
  const auto count = static_cast<std::size_t>(num_tokens * made.row_stride);
  for (std::size_t i = 0; i < count; ++i) {
    // Grid logits make ties; fine ones use every bit.
    const float value = i % 3 == 0 ? inputs::fine_logit(from) : inputs::grid_logit(from, 96);
    made.logits.push_back(from_float<Logit>(value));
  }
  if (g.selection_bias) made.bias = checked::grid_bias(from, g.num_experts);
  return made;
}

/// A head: apart, or what lies behind the logits of each row where that is wide enough. Some of its
/// columns are not finite.
template <class Logit>
void give_head(inputs::sequence& from, batch<Logit>& input) {
  const int columns = input.model.top_k - 1;
  input.head_in_rows = input.row_stride - input.model.num_experts >= columns;
  input.head_stride = columns + from.below(3);
  const auto stride = input.head_in_rows ? input.row_stride : input.head_stride;
  if (!input.head_in_rows)
    input.head.assign(static_cast<std::size_t>(input.num_tokens * stride),
                      from_float<Logit>(math::infinity));  // the gap is not read
  Logit* first =
      input.head_in_rows ? input.logits.data() + input.model.num_experts : input.head.data();
  const float odd[] = {inputs::from_bits(0x7FC00000u), math::infinity, -math::infinity};
  for (std::int64_t t = 0; t < input.num_tokens; ++t)
    for (int j = 0; j < columns; ++j)
      first[t * stride + j] =
          from_float<Logit>(from.chance(40) ? odd[from.below(3)] : inputs::grid_logit(from, 48));
}

/// Rows with NaN and infinities of both signs, all of them, and none finite.
template <class Logit>
void spoil(inputs::sequence& from, batch<Logit>& input) {
  const float inf = math::infinity;
  const float odd[] = {inputs::from_bits(0x7FC00000u), inf, -inf, inputs::from_bits(0xFFC00001u),
                       -0.0f};
  for (std::int64_t t = 0; t < input.num_tokens; t += 3) {
    const bool whole_row = from.chance(3);
    const float one = odd[from.below(5)];
    for (int e = 0; e < input.model.num_experts; ++e)
      if (whole_row || from.chance(5))
        input.logits[static_cast<std::size_t>(t * input.row_stride + e)] =
            from_float<Logit>(whole_row ? one : odd[from.below(5)]);
  }
}

/// Rows whose logits lie far apart: scores that are 0, and none that is NaN.
template <class Logit>
void stretch(inputs::sequence& from, batch<Logit>& input) {
  for (std::int64_t t = 0; t < input.num_tokens; t += from.between(1, 3)) {
    const float factor = static_cast<float>(from.between(8, 64));
    for (int e = 0; e < input.model.num_experts; ++e) {
      Logit& logit = input.logits[static_cast<std::size_t>(t * input.row_stride + e)];
      logit = from_float<Logit>(to_float(logit) * factor);
    }
  }
}

/// Rows of few different logits, zeros of both signs among them: ties, which go by index alone.
template <class Logit>
void coarsen(inputs::sequence& from, batch<Logit>& input) {
  for (std::int64_t t = 0; t < input.num_tokens; t += from.between(1, 3))
    for (int e = 0; e < input.model.num_experts; ++e)
      input.logits[static_cast<std::size_t>(t * input.row_stride + e)] =
          from_float<Logit>(from.pick<float>({0.0f, -0.0f, -1.0f, 0.5f}));
}

/// Padding and limits of every kind, some tokens without.
template <class Logit>
void restrict_tokens(inputs::sequence& from, batch<Logit>& input) {
  for (std::int64_t t = 0; t < input.num_tokens; ++t) {
    const int low = from.between(1, input.model.top_k);
    input.k_min.push_back(static_cast<std::uint8_t>(from.chance(2) ? 1 : low));
    input.k_max.push_back(static_cast<std::uint8_t>(from.between(low, input.model.top_k)));
    input.padding_mask.push_back(from.chance(4) ? 1 : 0);
  }
}

/// Any different experts, 0 to K0 of them; the slots behind them hold what no expert is.
template <class Logit>
void dictate(inputs::sequence& from, batch<Logit>& input) {
  const int top_k = input.model.top_k;
  input.replays_in_place = from.chance(2);
  for (std::int64_t t = 0; t < input.num_tokens; ++t) {
    std::vector<std::int32_t> experts;
    for (int e = 0; e < input.model.num_experts; ++e) experts.push_back(e);
    const int count = from.between(0, top_k);
    for (int j = 0; j < top_k; ++j) {
      std::swap(experts[oracle::at(j)],
                experts[oracle::at(from.between(j, input.model.num_experts - 1))]);
      input.replay_ids.push_back(j < count ? experts[oracle::at(j)] : -1);
    }
    input.replay_counts.push_back(count);
  }
}

}  // namespace twin

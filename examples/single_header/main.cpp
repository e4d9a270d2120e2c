// A MoE layer on the host by one header and one line of a compiler: routes, groups tokens by
// expert, runs the experts, combines. Weights and activations are made up; at full K the layer must
// give what a plain loop over all experts gives, which takes the library for nothing.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"

namespace {

constexpr int num_tokens = 64, num_experts = 16, top_k = 4, hidden = 32;

std::vector<float> made_up(std::mt19937& random, int size, float scale) {
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values)
    value = scale * (static_cast<float>(random() >> 8) / 8388608.0f - 1.0f);
  return values;
}

/// y = W x, W [rows, hidden].
void multiply(const float* w, int rows, const float* x, float* y) {
  for (int r = 0; r < rows; ++r) y[r] = std::inner_product(x, x + hidden, w + r * hidden, 0.0f);
}

void check(const adaptive_k::status& result) {
  if (result.ok()) return;
  std::fprintf(stderr, "%s\n", result.message());
  std::exit(1);
}

struct moe_layer {
  std::vector<float> router_weights;  ///< [num_experts, hidden]
  std::vector<float> expert_weights;  ///< [num_experts, hidden, hidden]

  const float* expert(int e) const { return expert_weights.data() + e * hidden * hidden; }

  /// y [num_tokens, hidden] of x, by the experts that the router's policy leaves.
  std::vector<float> run(const adaptive_k::router& router, const std::vector<float>& x,
                         adaptive_k::routing_metrics* metrics) const {
    std::vector<float> logits(num_tokens * num_experts), weights(num_tokens * top_k);
    std::vector<std::int32_t> ids(num_tokens * top_k), counts(num_tokens);
    for (int t = 0; t < num_tokens; ++t)
      multiply(router_weights.data(), num_experts, x.data() + t * hidden,
               logits.data() + t * num_experts);
    check(router.route(0, {logits.data(), num_tokens, num_experts},
                       {ids.data(), weights.data(), counts.data()}, metrics));

    std::vector<std::int32_t> offsets(num_experts + 1), tokens(num_tokens * top_k),
        row_of_slot(num_tokens * top_k);
    adaptive_k::permutation_output grouped;
    grouped.expert_offsets = offsets.data();
    grouped.sorted_tokens = tokens.data();
    grouped.row_of_slot = row_of_slot.data();
    check(adaptive_k::permute<std::int32_t>({num_tokens, top_k, num_experts},
                                            {ids.data(), counts.data()}, grouped));

    std::vector<float> rows(num_tokens * top_k * hidden), y(num_tokens * hidden);
    for (int e = 0; e < num_experts; ++e)
      for (int row = offsets[e]; row < offsets[e + 1]; ++row)
        multiply(expert(e), hidden, x.data() + tokens[row] * hidden, rows.data() + row * hidden);
    adaptive_k::combine_input<float, float> combined;
    combined.expert_outputs = rows.data();
    combined.row_of_slot = row_of_slot.data();
    combined.topk_weights = weights.data();
    check(adaptive_k::combine_experts({num_tokens, top_k, hidden}, combined, y.data()));
    return y;
  }

  /// The same at full K, as a textbook has it.
  std::vector<float> run_plainly(const std::vector<float>& x) const {
    std::vector<float> y(num_tokens * hidden), scores(num_experts), output(hidden);
    for (int t = 0; t < num_tokens; ++t) {
      const float* row = x.data() + t * hidden;
      multiply(router_weights.data(), num_experts, row, scores.data());
      for (float& score : scores) score = std::exp(score);
      std::vector<float> best = scores;
      std::nth_element(best.begin(), best.begin() + top_k - 1, best.end(), std::greater<float>());
      const float least = best[top_k - 1];
      const float sum = std::accumulate(best.begin(), best.begin() + top_k, 0.0f);
      for (int e = 0; e < num_experts; ++e) {
        if (scores[e] < least) continue;
        multiply(expert(e), hidden, row, output.data());
        for (int i = 0; i < hidden; ++i) y[t * hidden + i] += scores[e] / sum * output[i];
      }
    }
    return y;
  }
};

/// |a - b| / |b|
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  moe_layer layer;
  layer.router_weights = made_up(random, num_experts * hidden, 0.6f);
  layer.expert_weights = made_up(random, num_experts * hidden * hidden, 0.3f);
  const std::vector<float> x = made_up(random, num_tokens * hidden, 1.0f);

  adaptive_k::gating gating;
  gating.num_experts = num_experts;
  gating.top_k = top_k;
  const adaptive_k::router full{gating, adaptive_k::k_policy::full()};
  const adaptive_k::router fewer{gating, adaptive_k::k_policy::top_p(0.85f, top_k)};
  adaptive_k::routing_metrics metrics;
  const std::vector<float> plain = layer.run_plainly(x);
  const double at_full_k = distance(layer.run(full, x, nullptr), plain);
  const double at_fewer = distance(layer.run(fewer, x, &metrics), plain);
  std::printf(
      "adaptive_k %d.%d: full K differs from a plain loop by %.1e; top-p saved %.1f%% of "
      "expert calls and differs by %.1e\n",
      ADAPTIVE_K_VERSION_MAJOR, ADAPTIVE_K_VERSION_MINOR, at_full_k, 100 * metrics.expert_savings(),
      at_fewer);
  return at_full_k < 1e-5 && metrics.expert_savings() > 0 ? 0 : 1;
}

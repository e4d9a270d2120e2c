// Time of a routing call: the library, with its entropy and adaptive K, against the straightforward
// scalar code an engine would write for full K with an entropy.
#include <benchmark/benchmark.h>
#include <adaptive_k/adaptive_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace {

struct shape {
  int num_experts;
  int top_k;
};

constexpr shape shapes[] = {{8, 2}, {60, 4}, {64, 8}, {128, 8}, {256, 8}};
constexpr std::int64_t token_counts[] = {1, 512, 4096};
constexpr std::size_t num_inputs = 8;  // so that branches cannot learn one input by heart

/// Logits of about standard deviation 2, made from integers: the same everywhere.
std::vector<float> random_logits(std::size_t size, std::uint64_t seed) {
  std::vector<float> logits(size);
  std::uint64_t state = seed;
  for (float& logit : logits) {
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<std::int64_t>(state >> 48) - 32768;
    }
    logit = static_cast<float>(sum) / 18918.0f;
  }
  return logits;
}

struct buffers {
  std::vector<std::vector<float>> logits;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<std::int32_t> counts;
  std::vector<float> signal;

  buffers(std::int64_t tokens, shape s)
      : ids(static_cast<std::size_t>(tokens * s.top_k)),
        weights(ids.size()),
        counts(static_cast<std::size_t>(tokens)),
        signal(counts.size()) {
    for (std::size_t i = 0; i < num_inputs; ++i)
      logits.push_back(random_logits(static_cast<std::size_t>(tokens * s.num_experts), i + 1));
  }
};

void count_tokens(benchmark::State& state, std::int64_t tokens) {
  state.counters["time/token"] = benchmark::Counter(
      static_cast<double>(tokens),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void route_adaptive_k(benchmark::State& state, std::int64_t tokens, shape s) {
  adaptive_k::gating gating;
  gating.num_experts = s.num_experts;
  gating.top_k = s.top_k;
  const auto middle = static_cast<float>(0.75 * std::log(s.num_experts));
  const adaptive_k::router router(gating,
                                  adaptive_k::k_policy::entropy({s.top_k / 2, s.top_k}, {middle}));
  buffers b(tokens, s);
  const adaptive_k::routing_output<> output = {b.ids.data(), b.weights.data(), b.counts.data(),
                                               b.signal.data()};
  std::size_t turn = 0;
  for (auto _ : state) {
    const std::vector<float>& logits = b.logits[turn++ % num_inputs];
    const adaptive_k::status result = router.route(
        0, adaptive_k::logits_view<float>{logits.data(), tokens, s.num_experts, 0}, output);
    if (!result) state.SkipWithError(result.message());
    benchmark::DoNotOptimize(b.ids.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
}

/// Softmax, entropy and a partial sort, as first written.
void route_token_scalar(const float* logits, shape s, std::vector<float>& probabilities,
                        std::vector<std::int32_t>& order, std::int32_t* ids, float* weights,
                        float* entropy) {
  const float largest = *std::max_element(logits, logits + s.num_experts);
  float sum = 0.0f;
  for (int e = 0; e < s.num_experts; ++e) {
    probabilities[static_cast<std::size_t>(e)] = std::exp(logits[e] - largest);
    sum += probabilities[static_cast<std::size_t>(e)];
  }
  *entropy = 0.0f;
  for (float& p : probabilities) {
    p /= sum;
    if (p > 0.0f) *entropy -= p * std::log(p);
  }
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + s.top_k, order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const float pa = probabilities[static_cast<std::size_t>(a)];
                      const float pb = probabilities[static_cast<std::size_t>(b)];
                      return pa != pb ? pa > pb : a < b;
                    });
  float mass = 0.0f;
  for (int k = 0; k < s.top_k; ++k) {
    ids[k] = order[static_cast<std::size_t>(k)];
    weights[k] = probabilities[static_cast<std::size_t>(ids[k])];
    mass += weights[k];
  }
  for (int k = 0; k < s.top_k; ++k) weights[k] /= mass;
}

void route_scalar(benchmark::State& state, std::int64_t tokens, shape s) {
  buffers b(tokens, s);
  std::vector<float> probabilities(static_cast<std::size_t>(s.num_experts));
  std::vector<std::int32_t> order(probabilities.size());
  std::size_t turn = 0;
  for (auto _ : state) {
    const float* logits = b.logits[turn++ % num_inputs].data();
    for (std::int64_t t = 0; t < tokens; ++t)
      route_token_scalar(logits + t * s.num_experts, s, probabilities, order,
                         b.ids.data() + t * s.top_k, b.weights.data() + t * s.top_k,
                         b.signal.data() + t);
    benchmark::DoNotOptimize(b.ids.data());
    benchmark::ClobberMemory();
  }
  count_tokens(state, tokens);
}

[[maybe_unused]] const bool registered = [] {
  for (const shape s : shapes)
    for (const std::int64_t tokens : token_counts) {
      const std::string suffix = "/f32/T:" + std::to_string(tokens) +
                                 "/E:" + std::to_string(s.num_experts) +
                                 "/K:" + std::to_string(s.top_k);
      benchmark::RegisterBenchmark(
          ("route/adaptive_k" + suffix).c_str(),
          [=](benchmark::State& state) { route_adaptive_k(state, tokens, s); });
      benchmark::RegisterBenchmark(("route/scalar" + suffix).c_str(), [=](benchmark::State& state) {
        route_scalar(state, tokens, s);
      });
    }
  return true;
}();

}  // namespace

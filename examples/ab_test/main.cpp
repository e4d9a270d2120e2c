// Full K against top-p, dealt by request id; then the same test over many seeds, with a planted
// effect and with none, to see how often it errs.
//
//   ab_test [--seeds N] [--planted-effect PERCENT]
//
// 200 seeds and an effect of 5% on latency if not said otherwise. Fails if more than 5% of the
// seeds without an effect find one, or if fewer than 98% find one of 5% or more.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/observability/ab_test.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int num_experts = 32;
constexpr int top_k = 8;
constexpr int tokens = 4;
constexpr int requests = 2000;
constexpr int looks = 20;

/// Uniform in 0..1, from the id alone: the same on every machine.
double uniform(std::uint64_t seed, std::uint64_t request, std::uint64_t draw) {
  const std::uint64_t bits = adaptive_k::ab_hash(std::to_string(request), seed * 4096 + draw);
  return static_cast<double>(bits >> 11) / 9007199254740992.0;
}

/// Bell-shaped, mean 0, variance 1.
double noise(std::uint64_t seed, std::uint64_t request, std::uint64_t draw) {
  double sum = -6.0;
  for (std::uint64_t i = 0; i < 12; ++i) sum += uniform(seed, request, draw + i);
  return sum;
}

/// What the request really saves, routed by `router`.
double savings_of(const adaptive_k::router& router, std::uint64_t request) {
  std::vector<float> logits;
  for (int i = 0; i < tokens * num_experts; ++i)
    logits.push_back(
        static_cast<float>(8.0 * uniform(1, request, 1024 + static_cast<std::uint64_t>(i))));
  adaptive_k::routing_metrics metrics;
  const adaptive_k::logits_view<float> view{logits.data(), tokens, num_experts};
  const auto routed = router.route(0, view, &metrics);
  if (!routed.result.ok()) std::fprintf(stderr, "%s\n", routed.result.message());
  return metrics.expert_savings();
}

adaptive_k::router router_of(const adaptive_k::k_policy& policy) {
  adaptive_k::gating gating;
  gating.num_experts = num_experts;
  gating.top_k = top_k;
  return {gating, policy};
}

struct outcome {
  bool latency_found = false;  // at any look
  bool quality_found = false;
  std::string sentence;
};

outcome run(std::uint64_t seed, double latency_effect) {
  static const std::vector<adaptive_k::router> routers = {
      router_of(adaptive_k::k_policy::full()),
      router_of(adaptive_k::k_policy::top_p(0.85f, top_k))};
  static const std::vector<std::vector<double>> savings = [] {
    std::vector<std::vector<double>> all(2);
    for (std::size_t arm = 0; arm < 2; ++arm)
      for (std::uint64_t i = 0; i < requests; ++i) all[arm].push_back(savings_of(routers[arm], i));
    return all;
  }();
  adaptive_k::ab_options options;
  options.salt = seed;
  options.bootstrap_seed = seed;
  options.bootstrap_replicates = 200;
  adaptive_k::ab_test test({{"full"}, {"adaptive"}}, options);
  outcome result;
  for (std::uint64_t i = 0; i < requests; ++i) {
    const std::size_t arm = test.assign_variant("request-" + std::to_string(i));
    // Latency is simulated, for its true effect must be known; savings are the router's.
    const double seconds =
        0.1 * (1.0 + 0.2 * noise(seed, i, 0)) * (arm == 1 ? 1.0 + latency_effect : 1.0);
    const double quality = -1.2 + 0.1 * noise(seed, i, 16);
    if (!test.record(arm, {seconds, savings[arm][i], quality}).ok()) std::exit(1);
    if ((i + 1) % (requests / looks) != 0) continue;
    const adaptive_k::ab_results results = test.compute_results();
    using metric = adaptive_k::ab_metric;
    result.latency_found |= results.comparisons[0].of(metric::latency).found;
    result.quality_found |= results.comparisons[0].of(metric::quality).found;
    result.sentence = results.sentence;
  }
  return result;
}

constexpr const char* usage =
    "usage: ab_test [--seeds N] [--planted-effect PERCENT]\n"
    "  --seeds N                  1..100000 pairs of tests (default: 200)\n"
    "  --planted-effect PERCENT   on latency, above 0, below 100 (default: 5)\n";

}  // namespace

int main(int argc, char** argv) {
  double seeds_given = 200.0, percent = 5.0;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--help" || option == "-h") {
      std::fputs(usage, stdout);
      return std::fflush(stdout) == 0 ? 0 : 2;
    }
    double* const value = option == "--seeds"            ? &seeds_given
                          : option == "--planted-effect" ? &percent
                                                         : nullptr;
    char* end = nullptr;
    if (value != nullptr && i + 1 < argc) *value = std::strtod(argv[i + 1], &end);
    if (end == nullptr || end == argv[i + 1] || *end != '\0') {
      if (value == nullptr)
        std::fprintf(stderr, "ab_test: '%s', expected --seeds or --planted-effect\n%s", argv[i],
                     usage);
      else
        std::fprintf(stderr, "ab_test: %s: '%s', expected a number\n", argv[i],
                     i + 1 < argc ? argv[i + 1] : "");
      return 2;
    }
  }
  if (!(seeds_given >= 1.0 && seeds_given <= 100000.0) || !(percent > 0.0 && percent < 100.0)) {
    std::fprintf(stderr,
                 "ab_test: expected 1..100000 seeds, and an effect above 0%%, below 100%%\n");
    return 2;
  }
  const int seeds = static_cast<int>(seeds_given);
  int found = 0, wrong = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    const outcome planted = run(static_cast<std::uint64_t>(seed), -percent / 100.0);
    const outcome none = run(static_cast<std::uint64_t>(seed) + 1000000, 0.0);
    if (seed == 1)
      std::printf("planted: %s\nnone:    %s\n", planted.sentence.c_str(), none.sentence.c_str());
    found += planted.latency_found;
    wrong += none.latency_found || none.quality_found;
  }
  std::printf(
      "%d seeds, %d requests, %d looks each: a planted %g%% found in %.1f%%, "
      "an effect found where there is none in %.1f%% (stated: at most 5%%)\n",
      seeds, requests, looks, percent, 100.0 * found / seeds, 100.0 * wrong / seeds);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "ab_test: stdout: cannot be written\n");
    return 2;
  }
  const bool enough = percent < 5.0 || found >= 0.98 * seeds;
  return enough && wrong <= 0.05 * seeds ? 0 : 1;
}

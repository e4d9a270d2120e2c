// Continues a prompt with a byte-level model, with fewer experts per token where the router is
// sure:
//   moe_engine_generate <model folder> <prompt> [tokens] [top_p] [seed]
#include <adaptive_k/adaptive_k.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "engine.hpp"

namespace {

/// The likeliest token, or with a seed one drawn from softmax(logits [vocab_size]).
int pick(const float* logits, int vocab_size, std::uint64_t& state) {
  const float* best = std::max_element(logits, logits + vocab_size);
  if (state == 0) return static_cast<int>(best - logits);
  std::vector<double> cumulative;
  double sum = 0.0;
  for (int i = 0; i < vocab_size; ++i)
    cumulative.push_back(sum += std::exp(static_cast<double>(logits[i] - *best)));
  state = state * 6364136223846793005u + 1442695040888963407u;
  const double drawn = static_cast<double>(state >> 11) / 9007199254740992.0 * sum;
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), drawn);
  return static_cast<int>(std::min<std::ptrdiff_t>(found - cumulative.begin(), vocab_size - 1));
}

/// Keeps experts until they hold `mass` of the weight that the model's own top k have.
adaptive_k::k_policy top_p(int top_k, float mass) {
  adaptive_k::k_policy policy;
  policy.rule = adaptive_k::k_rule::thresholds;
  policy.signal = adaptive_k::signal_kind::topk_mass;
  policy.num_k_values = static_cast<std::uint8_t>(top_k);
  for (int k = 1; k <= top_k; ++k) policy.k_values[k - 1] = static_cast<std::uint8_t>(k);
  for (int k = 1; k < top_k; ++k) policy.thresholds[k - 1] = mass;
  return policy;
}

int generate(const std::string& folder, const std::string& prompt, int num_tokens, float mass,
             std::uint64_t seed) {
  moe_engine::engine model = moe_engine::engine::load(folder);
  for (const std::string& warning : model.warnings())
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  const moe_engine::model_config& config = model.config();
  if (config.vocab_size != 256) {
    std::fprintf(stderr, "%s: vocab_size is %d, expected 256: this program has no tokenizer\n",
                 folder.c_str(), config.vocab_size);
    return 2;
  }
  const adaptive_k::k_policy policy =
      mass < 1.0f ? top_p(config.gating.top_k, mass) : adaptive_k::k_policy::full();
  const adaptive_k::router router(config.gating, policy);
  adaptive_k::routing_metrics metrics;
  const auto route = moe_engine::route_with(router, &metrics);

  std::vector<std::int32_t> tokens;
  for (const char c : prompt) tokens.push_back(static_cast<unsigned char>(c));
  std::vector<float> logits;
  std::printf("%s", prompt.c_str());
  for (int i = 0; i < num_tokens; ++i) {
    // Without a cache of keys and values every step computes the whole context anew.
    const auto length = std::min(static_cast<int>(tokens.size()), config.max_positions);
    logits.resize(static_cast<std::size_t>(length) * 256);
    model.forward(tokens.data() + tokens.size() - static_cast<std::size_t>(length), 1, length,
                  route, logits.data());
    tokens.push_back(pick(logits.data() + (length - 1) * 256, 256, seed));
    std::putchar(tokens.back());
    std::fflush(stdout);
  }
  std::printf("\n\nmean K %.2f of %d, %.1f%% of expert calls saved\n", metrics.mean_k(),
              config.gating.top_k, 100.0 * metrics.expert_savings());
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "stdout: cannot be written\n");
    return 2;
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3 || count > 6 || arguments[2][0] == '\0') {
    std::fprintf(stderr,
                 "usage: %s <model folder> <prompt> [tokens = 200] [top_p = 0.8; 1 keeps all] "
                 "[seed; none takes the likeliest]\n",
                 arguments[0]);
    return 2;
  }
  try {
    return generate(arguments[1], arguments[2], count > 3 ? std::atoi(arguments[3]) : 200,
                    count > 4 ? std::strtof(arguments[4], nullptr) : 0.8f,
                    count > 5 ? std::strtoull(arguments[5], nullptr, 10) : 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

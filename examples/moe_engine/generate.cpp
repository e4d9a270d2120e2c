// Continues a prompt, with fewer experts per token where the router is sure:
//   moe_engine_generate <model folder> <prompt> [tokens] [top_p] [seed]
#include <adaptive_k/adaptive_k.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"
#include "tokenizer.hpp"

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

/// Text to tokens and back: by the folder's tokenizer, or byte by byte.
class text_coder {
 public:
  text_coder(const std::filesystem::path& folder, int vocab_size) {
    const std::filesystem::path file = folder / "tokenizer.json";
    if (std::filesystem::exists(file)) {
      tokenizer_.emplace(file);
      if (tokenizer_->vocab_size() > vocab_size)
        throw std::runtime_error(
            file.string() + ": has " + std::to_string(tokenizer_->vocab_size()) +
            " tokens, expected at most vocab_size = " + std::to_string(vocab_size) +
            " of config.json");
    } else if (vocab_size != 256) {
      throw std::runtime_error(file.string() + ": missing, and vocab_size is " +
                               std::to_string(vocab_size) + ", expected 256: a model of bytes");
    }
  }

  std::vector<std::int32_t> encode(const std::string& text) const {
    if (tokenizer_) return tokenizer_->encode(text);
    std::vector<std::int32_t> tokens;
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  std::string bytes_of(std::int32_t token) const {
    return tokenizer_ ? tokenizer_->bytes_of(token) : std::string(1, static_cast<char>(token));
  }

 private:
  std::optional<moe_engine::tokenizer> tokenizer_;
};

int generate(const std::string& folder, const std::string& prompt, int num_tokens, float mass,
             std::uint64_t seed) {
  moe_engine::engine model = moe_engine::engine::load(folder);
  for (const std::string& warning : model.warnings())
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  const moe_engine::model_config& config = model.config();
  const text_coder coder(folder, config.vocab_size);
  const adaptive_k::k_policy policy = mass < 1.0f
                                          ? adaptive_k::k_policy::top_p(mass, config.gating.top_k)
                                          : adaptive_k::k_policy::full();
  const adaptive_k::router router(config.gating, policy);
  adaptive_k::routing_metrics metrics;
  const auto route = moe_engine::route_with(router, &metrics);

  std::vector<std::int32_t> next = coder.encode(prompt);
  const auto room = static_cast<std::size_t>(config.max_positions);
  if (next.empty() || next.size() > room) {
    std::fprintf(stderr, "the prompt has %zu tokens, expected 1..%zu, the model's context\n",
                 next.size(), room);
    return 2;
  }
  std::vector<float> logits;
  moe_engine::text_cache cache(1);
  std::printf("%s", prompt.c_str());
  for (int i = 0; i < num_tokens; ++i) {
    const auto count = static_cast<int>(next.size());
    if (cache.length(0) + count > config.max_positions) {
      std::printf("\n(the model's context of %d tokens is full)", config.max_positions);
      break;
    }
    logits.resize(next.size() * static_cast<std::size_t>(config.vocab_size));
    model.extend(cache, next.data(), {count}, route, logits.data());
    next = {pick(logits.data() + std::ptrdiff_t{count - 1} * config.vocab_size, config.vocab_size,
                 seed)};
    const std::string bytes = coder.bytes_of(next.front());
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
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

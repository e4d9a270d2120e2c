#include "engine.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine_parts.hpp"

namespace moe_engine {
namespace {

using vector_map = Eigen::Map<Eigen::VectorXf>;
using const_vector_map = Eigen::Map<const Eigen::VectorXf>;

}  // namespace

engine::engine(std::unique_ptr<implementation> parts) : parts_(std::move(parts)) {}
engine::engine(engine&&) noexcept = default;
engine& engine::operator=(engine&&) noexcept = default;
engine::~engine() = default;

const model_config& engine::config() const noexcept {
  return parts_->config;
}

const std::string& engine::expert_dtype() const noexcept {
  return parts_->expert_dtype;
}

const std::vector<std::string>& engine::warnings() const noexcept {
  return parts_->warnings;
}

void engine::implementation::check_lengths(int num_sequences, int length) const {
  if (num_sequences < 0 || length < 0 || length > config.max_positions) {
    throw std::runtime_error("num_sequences is " + std::to_string(num_sequences) +
                             " and length is " + std::to_string(length) +
                             ", expected 0 or more and 0.." + std::to_string(config.max_positions));
  }
}

void engine::implementation::read_tokens(const std::int32_t* tokens, std::int64_t num_tokens) {
  const std::int64_t hidden = config.hidden_size;
  const auto size = static_cast<std::size_t>(num_tokens * hidden);
  residual.resize(size);
  normed.resize(size);
  update.resize(size);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (tokens[t] < 0 || tokens[t] >= config.vocab_size) {
      throw std::runtime_error("token " + std::to_string(t) + " is " + std::to_string(tokens[t]) +
                               ", expected 0.." + std::to_string(config.vocab_size - 1));
    }
    std::copy_n(embeddings.data() + tokens[t] * hidden, hidden, residual.data() + t * hidden);
  }
}

const rotary_table& engine::implementation::rotary_of(int length) {
  if (!rotary || rotary_length < length) {
    rotary_length = std::min(std::max(length, 2 * rotary_length), config.max_positions);
    rotary.emplace(config, rotary_length);
  }
  return *rotary;
}

template <class Attend>
void engine::run_layers(std::int64_t num_tokens, const Attend& attend, const route_function& route,
                        float* logits, timing* time, const observe_function& observe) {
  const auto begin_total = clock_type::now();
  implementation& p = *parts_;
  const model_config& config = p.config;
  const std::int64_t hidden = config.hidden_size;
  vector_map residual(p.residual.data(), num_tokens * hidden);
  const const_vector_map update(p.update.data(), num_tokens * hidden);
  double moe_seconds = 0.0;
  for (int i = 0; i < config.num_layers; ++i) {
    const layer& l = p.layers[static_cast<std::size_t>(i)];
    rms_norm(p.residual.data(), num_tokens, l.input_norm, config.rms_norm_eps, p.normed.data());
    attend(l.attention, i);
    residual += update;
    rms_norm(p.residual.data(), num_tokens, l.post_attention_norm, config.rms_norm_eps,
             p.normed.data());
    if (l.moe) {
      const auto begin_moe = clock_type::now();
      l.moe->forward(l.moe_index, p.normed.data(), num_tokens, route, p.update.data(), p.workspace);
      moe_seconds += seconds_since(begin_moe);
      if (observe)
        l.moe->show(l.moe_index, p.normed.data(), p.residual.data(), num_tokens, p.workspace,
                    observe);
    } else {
      l.dense->forward(p.normed.data(), num_tokens, p.update.data());
    }
    residual += update;
  }
  rms_norm(p.residual.data(), num_tokens, p.norm, config.rms_norm_eps, p.normed.data());
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    p.head.multiply(p.normed.data() + begin * hidden, end - begin,
                    logits + begin * config.vocab_size);
  });
  if (time != nullptr) {
    time->moe_seconds += moe_seconds;
    time->total_seconds += seconds_since(begin_total);
  }
}

void engine::forward(const std::int32_t* tokens, int num_sequences, int length,
                     const route_function& route, float* logits, timing* time,
                     const observe_function& observe) {
  implementation& p = *parts_;
  p.check_lengths(num_sequences, length);
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  p.read_tokens(tokens, num_tokens);
  const rotary_table& rotary = p.rotary_of(length);
  run_layers(
      num_tokens,
      [&](const attention_layer& attention, int) {
        attention.forward(p.normed.data(), num_sequences, length, rotary, p.update.data(),
                          p.attention_buffer);
      },
      route, logits, time, observe);
}

bool engine::extends_texts() noexcept {
  return true;
}

bool engine::takes_router_heads() noexcept {
  return true;
}

void engine::extend(text_cache& cache, const std::int32_t* tokens, const std::vector<int>& counts,
                    const route_function& route, float* logits, timing* time) {
  implementation& p = *parts_;
  const int num_sequences = cache.num_sequences();
  if (counts.size() != cache.lengths_.size())
    throw std::runtime_error("counts holds " + std::to_string(counts.size()) +
                             " values, expected " + std::to_string(num_sequences) +
                             ", one for each text");
  std::vector<token_place> places;
  int longest = 0;
  for (int s = 0; s < num_sequences; ++s) {
    const int count = counts[static_cast<std::size_t>(s)];
    const int begin = cache.length(s);
    if (count < 0 || count > p.config.max_positions - begin)
      throw std::runtime_error("counts[" + std::to_string(s) + "] is " + std::to_string(count) +
                               ", expected 0.." + std::to_string(p.config.max_positions - begin) +
                               " behind a text of " + std::to_string(begin));
    for (int i = 0; i < count; ++i) places.push_back({s, begin + i});
    longest = std::max(longest, begin + count);
  }
  const auto num_tokens = static_cast<std::int64_t>(places.size());
  p.read_tokens(tokens, num_tokens);
  const rotary_table& rotary = p.rotary_of(longest);
  cache.kv_.resize(cache_index(p.config.num_layers, 0, num_sequences));
  run_layers(
      num_tokens,
      [&](const attention_layer& attention, int layer) {
        std::vector<float>* kv = cache.kv_.data() + cache_index(layer, 0, num_sequences);
        for (int s = 0; s < num_sequences; ++s)
          kv[s].resize(
              static_cast<std::size_t>(cache.length(s) + counts[static_cast<std::size_t>(s)]) *
              static_cast<std::size_t>(attention.kv_width()));
        attention.extend(p.normed.data(), places, rotary, kv, p.update.data(), p.attention_buffer);
      },
      route, logits, time, {});
  for (int s = 0; s < num_sequences; ++s)
    cache.lengths_[static_cast<std::size_t>(s)] += counts[static_cast<std::size_t>(s)];
}

}  // namespace moe_engine

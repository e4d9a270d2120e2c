#include "bench/adaptive_k/measure/continuation.hpp"

#include <fmt/format.h>

#include <adaptive_k/host/metrics.hpp>
#include <algorithm>
#include <cstddef>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/statistics.hpp"
#include "bench/adaptive_k/output/progress.hpp"

namespace bench {
namespace {

std::int32_t likeliest(const float* logits, int vocab_size) {
  return static_cast<std::int32_t>(std::max_element(logits, logits + vocab_size) - logits);
}

}  // namespace

std::string why_no_continuations(const moe_engine::model_config& model, const window_plan& windows,
                                 const continuation_lengths& lengths) {
  if (!moe_engine::engine::extends_texts()) return "this engine continues no texts";
  const int needed = lengths.prompt_tokens + lengths.new_tokens;
  if (windows.length < lengths.prompt_tokens)
    return fmt::format("windows of {} tokens, expected {} or more for prompts of that length",
                       windows.length, lengths.prompt_tokens);
  if (model.max_positions < needed)
    return fmt::format("the model's context is {}, expected {} or more: {} of a prompt and {} new",
                       model.max_positions, needed, lengths.prompt_tokens, lengths.new_tokens);
  return {};
}

continuations::continuations(moe_engine::engine& model, const dataset& data,
                             const window_plan& windows, const adaptive_k::router& full,
                             const continuation_lengths& lengths)
    : model_(model),
      lengths_(lengths),
      num_prompts_(static_cast<int>(std::min<std::int64_t>(lengths.prompts, windows.count))) {
  const std::string missing = why_no_continuations(model.config(), windows, lengths);
  if (!missing.empty()) throw failure(missing);
  const std::ptrdiff_t length = lengths_.prompt_tokens + lengths_.new_tokens;
  const int vocab = model_.config().vocab_size;
  tokens_.resize(static_cast<std::size_t>(num_prompts_ * length));
  for (std::ptrdiff_t i = 0; i < num_prompts_; ++i)
    std::copy_n(data.tokens.begin() + i * windows.count / num_prompts_ * windows.length,
                lengths_.prompt_tokens, tokens_.begin() + i * length);

  const auto route = moe_engine::route_with(full);
  const int most = at_once(lengths_.prompt_tokens);
  std::vector<float> logits;
  progress line("continuation", num_prompts_);
  for (int first = 0; first < num_prompts_; first += most) {
    const int count = std::min(most, num_prompts_ - first);
    moe_engine::text_cache cache(count);
    std::vector<std::int32_t> next;
    for (int i = 0; i < count; ++i) {
      const auto prompt = tokens_.begin() + (first + i) * length;
      next.insert(next.end(), prompt, prompt + lengths_.prompt_tokens);
    }
    int read = lengths_.prompt_tokens;  // of each text in this call
    for (std::ptrdiff_t at = lengths_.prompt_tokens; at < length; ++at) {
      logits.resize(next.size() * static_cast<std::size_t>(vocab));
      model_.extend(cache, next.data(), std::vector<int>(static_cast<std::size_t>(count), read),
                    route, logits.data());
      next.clear();
      for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float* last = logits.data() + ((i + 1) * read - 1) * vocab;
        next.push_back(likeliest(last, vocab));
        tokens_[static_cast<std::size_t>((first + i) * length + at)] = next.back();
      }
      read = 1;
    }
    line.update(first + count);
  }
}

// As many texts as their logits have room in 256 MB.
int continuations::at_once(int length) const {
  const double bytes = static_cast<double>(length) * model_.config().vocab_size * sizeof(float);
  return std::clamp(static_cast<int>(256e6 / bytes), 1, std::max(1, num_prompts_));
}

continuation_figures continuations::compare(std::string name,
                                            const adaptive_k::router& with) const {
  continuation_figures figures;
  figures.name = std::move(name);
  adaptive_k::routing_metrics metrics;
  const auto route = moe_engine::route_with(with, &metrics);
  const int vocab = model_.config().vocab_size;
  const std::ptrdiff_t length = lengths_.prompt_tokens + lengths_.new_tokens;
  const int read = static_cast<int>(length) - 1;  // the last token is only predicted
  const int most = at_once(read);
  std::vector<std::int32_t> context;
  std::vector<float> logits;
  for (int first = 0; first < num_prompts_; first += most) {
    const int count = std::min(most, num_prompts_ - first);
    context.clear();
    for (int i = 0; i < count; ++i) {
      const auto text = tokens_.begin() + (first + i) * length;
      context.insert(context.end(), text, text + read);
    }
    logits.resize(context.size() * static_cast<std::size_t>(vocab));
    model_.forward(context.data(), count, read, route, logits.data());
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      const float* predictions = logits.data() + (i * read + lengths_.prompt_tokens - 1) *
                                                     static_cast<std::ptrdiff_t>(vocab);
      const auto written = tokens_.begin() + (first + i) * length + lengths_.prompt_tokens;
      int agreed = 0;
      while (agreed < lengths_.new_tokens &&
             likeliest(predictions + static_cast<std::ptrdiff_t>(agreed) * vocab, vocab) ==
                 written[agreed])
        ++agreed;
      figures.agreed.push_back(agreed);
    }
  }
  figures.mean_k = metrics.mean_k();
  figures.median = median({figures.agreed.begin(), figures.agreed.end()});
  figures.never_differs = static_cast<double>(std::count(
                              figures.agreed.begin(), figures.agreed.end(), lengths_.new_tokens)) /
                          static_cast<double>(num_prompts_);
  return figures;
}

}  // namespace bench

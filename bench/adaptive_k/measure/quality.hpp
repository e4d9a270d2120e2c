// What a routing variant costs in quality, prediction by prediction against the model's own.
#pragma once

#include <cstdint>
#include <vector>

namespace bench {

/// Sums over the predictions of one window: the block of every standard error.
struct window_quality {
  double nll = 0.0;             ///< -ln p of the tokens that came, nats
  double kl = 0.0;              ///< KL(full || variant), nats
  std::int64_t agreements = 0;  ///< predictions whose likeliest token is that of full K
  std::int64_t predictions = 0;
  std::int64_t copies = 0;  ///< predictions whose answer stands in the window (`copies_before`)
  double copied = 0.0;      ///< of those, the ones whose likeliest token is the answer
};

/// A task that any text sets and any model can do: the last `copied_context` tokens [at - 3, at]
/// have stood in the window before, and what followed them the last time comes again at at + 1.
/// tokens [at + 2]; false for at < copied_context.
constexpr int copied_context = 4;
bool copies_before(const std::int32_t* tokens, int at);

/// One variant over a data set.
struct quality {
  std::vector<window_quality> windows;
  std::vector<float> kl;  ///< per prediction, for the quantile
};

/// log_probabilities [vocab_size] = logits - ln sum exp(logits), in double. Throws failure when a
/// logit is not finite.
void log_softmax(const float* logits, int vocab_size, double* log_probabilities);

/// Adds one window to `result`. full [length - 1, vocab_size]: log-probabilities of full K;
/// logits [length, vocab_size]: of the variant, the last row predicts nothing that is known;
/// tokens [length].
void add_window(const double* full, const float* logits, const std::int32_t* tokens, int length,
                int vocab_size, quality& result);

/// A figure and its standard error, paired by window; NaN where there is only one window.
struct estimate {
  double value = 0.0;
  double se = 0.0;
};

struct quality_summary {
  std::int64_t predictions = 0;
  double mean_nll = 0.0;
  double perplexity = 0.0;         ///< exp(mean nll)
  estimate perplexity_difference;  ///< variant - full
  estimate perplexity_ratio;       ///< variant / full
  estimate mean_kl;
  double kl_p99 = 0.0;
  estimate top1_agreement;
  std::int64_t copies = 0;
  estimate copy_accuracy;  ///< share of `copies` whose answer is the likeliest token; NaN of none
};

quality_summary summarize(const quality& full, const quality& variant);

/// Mean nll or KL of each window, nats.
std::vector<double> window_nll(const quality& q);
std::vector<double> window_kl(const quality& q);

/// (1 - share) * low + share * high, window by window: what mixing two variants would give. Its
/// per-prediction KL is left empty.
quality mix(const quality& low, const quality& high, double share);

/// exp(mean a) - exp(mean b) of window means of -ln p, with its standard error (delta method).
estimate perplexity_difference(const std::vector<double>& a, const std::vector<double>& b);

/// Mean of a - b and its standard error, paired by window.
estimate paired_difference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace bench

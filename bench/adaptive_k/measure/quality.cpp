#include "bench/adaptive_k/measure/quality.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/statistics.hpp"

namespace bench {

void log_softmax(const float* logits, int vocab_size, double* log_probabilities) {
  const float largest = *std::max_element(logits, logits + vocab_size);
  double sum = 0.0;
  double differences = 0.0;
  for (int v = 0; v < vocab_size; ++v) {
    log_probabilities[v] = static_cast<double>(logits[v]) - static_cast<double>(largest);
    differences += log_probabilities[v];
    sum += std::exp(log_probabilities[v]);
  }
  if (!std::isfinite(differences)) throw failure("the model's output is not finite");
  const double log_sum = std::log(sum);
  for (int v = 0; v < vocab_size; ++v) log_probabilities[v] -= log_sum;
}

bool copies_before(const std::int32_t* tokens, int at) {
  const std::int32_t* context = tokens + at + 1 - copied_context;
  for (int before = at - 1; before + 1 >= copied_context; --before)
    if (std::equal(context, context + copied_context, tokens + before + 1 - copied_context))
      return tokens[before + 1] == tokens[at + 1];
  return false;
}

void add_window(const double* full, const float* logits, const std::int32_t* tokens, int length,
                int vocab_size, quality& result) {
  std::vector<double> variant(static_cast<std::size_t>(vocab_size));
  window_quality window;
  for (int t = 0; t + 1 < length; ++t) {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(t) * vocab_size;
    const double* p = full + row;
    log_softmax(logits + row, vocab_size, variant.data());
    double kl = 0.0;
    for (int v = 0; v < vocab_size; ++v) {
      const double difference = p[v] - variant[static_cast<std::size_t>(v)];
      if (difference != 0.0) kl += std::exp(p[v]) * difference;
    }
    kl = std::max(kl, 0.0);  // rounding can leave -1e-17
    window.kl += kl;
    result.kl.push_back(static_cast<float>(kl));
    window.nll -= variant[static_cast<std::size_t>(tokens[t + 1])];
    const auto full_top = std::max_element(p, p + vocab_size) - p;
    const auto variant_top = std::max_element(variant.begin(), variant.end()) - variant.begin();
    window.agreements += full_top == variant_top ? 1 : 0;
    if (copies_before(tokens, t)) {
      ++window.copies;
      window.copied += variant_top == tokens[t + 1] ? 1.0 : 0.0;
    }
    ++window.predictions;
  }
  result.windows.push_back(window);
}

namespace {

template <class Value>
std::vector<double> per_window(const quality& q, Value value) {
  std::vector<double> result;
  result.reserve(q.windows.size());
  for (const window_quality& window : q.windows)
    result.push_back(value(window) / static_cast<double>(window.predictions));
  return result;
}

}  // namespace

std::vector<double> window_nll(const quality& q) {
  return per_window(q, [](const window_quality& w) { return w.nll; });
}

std::vector<double> window_kl(const quality& q) {
  return per_window(q, [](const window_quality& w) { return w.kl; });
}

estimate paired_difference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> differences(a.size());
  std::transform(a.begin(), a.end(), b.begin(), differences.begin(),
                 [](double x, double y) { return x - y; });
  return {mean(differences), standard_error(differences)};
}

namespace {

/// A ratio of sums over windows moves by (copied - ratio * copies) / mean copies, to first order.
estimate copy_accuracy(const quality& q) {
  double copies = 0.0;
  double copied = 0.0;
  for (const window_quality& window : q.windows) {
    copies += static_cast<double>(window.copies);
    copied += window.copied;
  }
  const double accuracy = copied / copies;
  std::vector<double> moved;
  for (const window_quality& window : q.windows)
    moved.push_back((window.copied - accuracy * static_cast<double>(window.copies)) *
                    static_cast<double>(q.windows.size()) / copies);
  return {accuracy, standard_error(moved)};
}

}  // namespace

estimate perplexity_difference(const std::vector<double>& a, const std::vector<double>& b) {
  const double perplexity_a = std::exp(mean(a));
  const double perplexity_b = std::exp(mean(b));
  // To first order exp(mean a) - exp(mean b) moves by exp(mean a) da - exp(mean b) db.
  std::vector<double> moved(a.size());
  for (std::size_t w = 0; w < a.size(); ++w) moved[w] = perplexity_a * a[w] - perplexity_b * b[w];
  return {perplexity_a - perplexity_b, standard_error(moved)};
}

quality_summary summarize(const quality& full, const quality& variant) {
  // Every window has the same number of predictions, so means of window means are means.
  const std::vector<double> full_nll = window_nll(full);
  const std::vector<double> nll = window_nll(variant);
  const std::vector<double> kl = window_kl(variant);
  const std::vector<double> agreement = per_window(
      variant, [](const window_quality& w) { return static_cast<double>(w.agreements); });

  quality_summary summary;
  for (const window_quality& window : variant.windows) {
    summary.predictions += window.predictions;
    summary.copies += window.copies;
  }
  summary.mean_nll = mean(nll);
  summary.perplexity = std::exp(summary.mean_nll);
  summary.perplexity_difference = perplexity_difference(nll, full_nll);
  // exp(mean(a - b)) moves by itself times d(a - b), to first order.
  const estimate nll_difference = paired_difference(nll, full_nll);
  const double ratio = std::exp(nll_difference.value);
  summary.perplexity_ratio = {ratio, ratio * nll_difference.se};

  summary.mean_kl = {mean(kl), standard_error(kl)};
  summary.kl_p99 = quantile(variant.kl, 0.99);
  summary.top1_agreement = {mean(agreement), standard_error(agreement)};
  summary.copy_accuracy = copy_accuracy(variant);
  return summary;
}

quality mix(const quality& low, const quality& high, double share) {
  quality result;
  for (std::size_t w = 0; w < low.windows.size(); ++w) {
    window_quality window;
    window.nll = (1.0 - share) * low.windows[w].nll + share * high.windows[w].nll;
    window.kl = (1.0 - share) * low.windows[w].kl + share * high.windows[w].kl;
    window.copied = (1.0 - share) * low.windows[w].copied + share * high.windows[w].copied;
    window.copies = low.windows[w].copies;
    window.predictions = low.windows[w].predictions;
    result.windows.push_back(window);
  }
  return result;
}

}  // namespace bench

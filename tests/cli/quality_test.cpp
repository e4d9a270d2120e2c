// Statistics and quality figures against sums written out.
#include "bench/adaptive_k/measure/quality.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/measure/statistics.hpp"

namespace {

TEST(Statistics, MeanAndStandardError) {
  EXPECT_DOUBLE_EQ(bench::mean({1.0, 2.0, 6.0}), 3.0);
  // Variance (4 + 1 + 9) / 2 = 7, of the mean 7 / 3.
  EXPECT_DOUBLE_EQ(bench::standard_error({1.0, 2.0, 6.0}), std::sqrt(7.0 / 3.0));
  EXPECT_TRUE(std::isnan(bench::standard_error({1.0})));
  EXPECT_EQ(bench::mean({}), 0.0);
}

TEST(Statistics, QuantileIsTheSmallestValueThatTheShareDoesNotExceed) {
  std::vector<float> values;
  for (int i = 100; i >= 1; --i) values.push_back(static_cast<float>(i));
  EXPECT_EQ(bench::quantile(values, 0.99), 99.0);
  EXPECT_EQ(bench::quantile(values, 1.0), 100.0);
  EXPECT_EQ(bench::quantile(values, 0.0), 1.0);
  EXPECT_EQ(bench::quantile(std::vector<float>{7.0f}, 0.99), 7.0);
}

TEST(Statistics, Median) {
  EXPECT_EQ(bench::median({3.0, 1.0, 2.0}), 2.0);
  EXPECT_EQ(bench::median({4.0, 1.0, 2.0, 3.0}), 2.5);
}

std::vector<double> log_probabilities(const std::vector<float>& logits, int vocab_size) {
  std::vector<double> result(logits.size());
  for (std::size_t row = 0; row < logits.size(); row += static_cast<std::size_t>(vocab_size))
    bench::log_softmax(logits.data() + row, vocab_size, result.data() + row);
  return result;
}

TEST(Quality, OneWindowByHand) {
  // Two predictions over three tokens; the third row predicts what nobody knows.
  const std::vector<float> full = {0.0f, 0.0f, 0.0f, 1.0f, 3.0f, 2.0f, 9.0f, 9.0f, 9.0f};
  const std::vector<float> other = {1.0f, 0.0f, 0.0f, 1.0f, 2.0f, 3.0f, 0.0f, 0.0f, 0.0f};
  const std::vector<std::int32_t> tokens = {2, 0, 1};
  bench::quality q;
  bench::add_window(log_probabilities(full, 3).data(), other.data(), tokens.data(), 3, 3, q);

  const double z = std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  const double first_nll = -std::log(std::exp(1.0) / (std::exp(1.0) + 2.0));
  const double second_nll = -std::log(std::exp(2.0) / z);
  // KL of the uniform row: ln(1/3) - mean of the other's logarithms.
  const double first_kl = std::log(1.0 / 3.0) - (1.0 / 3.0 - std::log(std::exp(1.0) + 2.0));
  // The second row has two probabilities exchanged: (e^3 - e^2) / z times ln e.
  const double second_kl = (std::exp(3.0) - std::exp(2.0)) / z;
  ASSERT_EQ(q.windows.size(), 1u);
  EXPECT_EQ(q.windows[0].predictions, 2);
  EXPECT_EQ(q.windows[0].agreements, 1);
  EXPECT_NEAR(q.windows[0].nll, first_nll + second_nll, 1e-12);
  EXPECT_NEAR(q.windows[0].kl, first_kl + second_kl, 1e-12);
  ASSERT_EQ(q.kl.size(), 2u);
  EXPECT_NEAR(static_cast<double>(q.kl[1]), second_kl, 1e-7);
}

TEST(Quality, EqualLogitsHaveNoDivergenceAtAll) {
  const std::vector<float> logits = {0.3f, -7.1f, 2.4f, 1e4f, 0.0f, -1e4f};
  const std::vector<std::int32_t> tokens = {0, 2};
  bench::quality q;
  bench::add_window(log_probabilities(logits, 3).data(), logits.data(), tokens.data(), 2, 3, q);
  const bench::quality_summary s = bench::summarize(q, q);
  EXPECT_EQ(s.mean_kl.value, 0.0);
  EXPECT_EQ(s.kl_p99, 0.0);
  EXPECT_EQ(s.perplexity_ratio.value, 1.0);
  EXPECT_EQ(s.perplexity_difference.value, 0.0);
  EXPECT_EQ(s.top1_agreement.value, 1.0);
  EXPECT_TRUE(std::isnan(s.mean_kl.se));  // one window
}

TEST(Quality, OutputThatIsNotFiniteIsRefused) {
  double result[2];
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    const float logits[] = {0.0f, bad};
    EXPECT_THROW(bench::log_softmax(logits, 2, result), bench::failure);
  }
}

bench::quality windows_of(const std::vector<double>& nll, const std::vector<double>& kl) {
  bench::quality q;
  for (std::size_t w = 0; w < nll.size(); ++w)
    q.windows.push_back({10.0 * nll[w], 10.0 * kl[w], 9, 10});
  return q;
}

TEST(Quality, StandardErrorsArePairedByWindow) {
  // The windows differ wildly, the two routings always by nearly the same.
  const bench::quality full = windows_of({1.0, 5.0, 9.0}, {0.0, 0.0, 0.0});
  const bench::quality other = windows_of({1.1, 5.1, 9.1}, {0.01, 0.02, 0.03});
  const bench::quality_summary s = bench::summarize(full, other);
  EXPECT_NEAR(s.perplexity, std::exp(5.1), 1e-9);
  EXPECT_NEAR(s.perplexity_ratio.value, std::exp(0.1), 1e-12);
  EXPECT_NEAR(s.perplexity_ratio.se, 0.0, 1e-12);
  EXPECT_NEAR(s.mean_kl.value, 0.02, 1e-12);
  EXPECT_NEAR(s.mean_kl.se, 0.01 / std::sqrt(3.0), 1e-12);
  EXPECT_NEAR(s.perplexity_difference.value, std::exp(5.1) - std::exp(5.0), 1e-9);
  // exp(5.1) nll' - exp(5) nll over the windows has the standard error of (P' - P) nll.
  EXPECT_NEAR(s.perplexity_difference.se,
              (std::exp(5.1) - std::exp(5.0)) * bench::standard_error({1.0, 5.0, 9.0}), 1e-9);
}

TEST(Quality, MixIsLinearInEveryWindow) {
  const bench::quality low = windows_of({2.0, 3.0}, {0.4, 0.2});
  const bench::quality high = windows_of({1.0, 1.0}, {0.0, 0.1});
  const bench::quality mixed = bench::mix(low, high, 0.25);
  EXPECT_NEAR(bench::window_nll(mixed)[0], 1.75, 1e-12);
  EXPECT_NEAR(bench::window_kl(mixed)[1], 0.175, 1e-12);
  EXPECT_EQ(bench::window_kl(bench::mix(low, high, 1.0)), bench::window_kl(high));
  EXPECT_EQ(bench::window_kl(bench::mix(low, high, 0.0)), bench::window_kl(low));
}

}  // namespace

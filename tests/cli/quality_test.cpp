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

TEST(Quality, CopyingIsWhatFollowedTheSameFourTokensTheLastTime) {
  //                                       0  1  2  3  4  5  6  7  8  9 10 11 12 13 14
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3, 4, 6};
  std::vector<int> found;
  for (int t = 0; t + 1 < static_cast<int>(tokens.size()); ++t)
    if (bench::copies_before(tokens.data(), t)) found.push_back(t);
  // 1 2 3 4 is followed by 5, by 6, by 6: after 4 no answer, after 8 another one, after 13 the last
  // one.
  EXPECT_EQ(found, std::vector<int>{13});

  const std::vector<std::int32_t> zeros(7, 0);  // a context may overlap where it stood before
  EXPECT_FALSE(bench::copies_before(zeros.data(), 3));
  EXPECT_TRUE(bench::copies_before(zeros.data(), 4));
}

TEST(Quality, CopyAccuracyIsOfTheCopiesOfAllWindows) {
  const std::vector<std::int32_t> tokens(8, 1);
  bench::quality q;
  std::vector<float> logits(16, 0.0f);  // of two tokens; the second is the answer at 4, 5 and 6
  const auto prefer = [&](int at) { logits[static_cast<std::size_t>(2 * at + 1)] = 1.0f; };
  prefer(3);  // no copy yet
  prefer(4);
  const std::vector<double> full = log_probabilities(logits, 2);
  bench::add_window(full.data(), logits.data(), tokens.data(), 8, 2, q);
  prefer(5);
  prefer(6);
  bench::add_window(full.data(), logits.data(), tokens.data(), 8, 2, q);
  const bench::quality_summary s = bench::summarize(q, q);
  EXPECT_EQ(s.copies, 6);
  EXPECT_DOUBLE_EQ(s.copy_accuracy.value, 4.0 / 6.0);
  // 1 and 3 of 3, both 1 from 2: over the mean of 3 copies, 2 windows.
  EXPECT_DOUBLE_EQ(s.copy_accuracy.se, bench::standard_error({-1.0 / 3.0, 1.0 / 3.0}));

  bench::quality none;
  none.windows.push_back({1.0, 0.1, 1, 3, 0, 0.0});
  EXPECT_TRUE(std::isnan(bench::summarize(none, none).copy_accuracy.value));
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
    q.windows.push_back({10.0 * nll[w], 10.0 * kl[w], 9, 10, 4, 3.0});
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
  EXPECT_EQ(mixed.windows[0].copies, 4);
  EXPECT_DOUBLE_EQ(mixed.windows[0].copied, 3.0);
  EXPECT_EQ(bench::window_kl(bench::mix(low, high, 1.0)), bench::window_kl(high));
  EXPECT_EQ(bench::window_kl(bench::mix(low, high, 0.0)), bench::window_kl(low));
}

}  // namespace

// Every number of experts there is, with the K0 at which a tier, a vector's width or a sorting
// network changes: each instruction set gives the scalar path's bits. ADAPTIVE_K_EXHAUSTIVE=1 in
// the environment: with every K0 and every gating.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the test is about it

bool exhaustive() {
  const char* const asked = std::getenv("ADAPTIVE_K_EXHAUSTIVE");
  return asked != nullptr && *asked != '\0';
}

/// Around the powers of two that networks and tiers end at, and E itself.
std::set<int> top_k_of(int num_experts) {
  std::set<int> values;
  const int most = num_experts < max_top_k ? num_experts : max_top_k;
  for (int k = 1; k <= most; ++k)
    if (exhaustive() || k <= 5 || k == 8 || k == 9 || k == 16 || k == 17 || k >= most - 1)
      values.insert(k);
  return values;
}

template <class Logit>
std::vector<Logit> logits_of(inputs::sequence& from, int count) {
  std::vector<Logit> made;
  const bool ties = from.chance(3);
  for (int i = 0; i < count; ++i)
    made.push_back(
        from_float<Logit>(ties ? inputs::grid_logit(from, 24) : inputs::fine_logit(from)));
  return made;
}

struct outcome {
  std::vector<std::int32_t> ids, counts;
  std::vector<float> weights, signal;
  routing_metrics metrics;

  template <class Logit>
  outcome(const gating& model, const k_policy& policy, const std::vector<Logit>& logits,
          std::int64_t tokens, const std::vector<float>& bias, instruction_set set)
      : ids(static_cast<std::size_t>(tokens * model.top_k)),
        counts(static_cast<std::size_t>(tokens)),
        weights(ids.size()),
        signal(counts.size()) {
    router_options options;
    options.instructions = set;
    routing_extras extras;
    if (model.selection_bias) extras.routing_bias = bias.data();
    const status routed =
        router(model, policy, options)
            .route(0, logits_view<Logit>{logits.data(), tokens, model.num_experts},
                   routing_output<>{ids.data(), weights.data(), counts.data(), signal.data()},
                   &metrics, extras);
    EXPECT_TRUE(routed.ok()) << routed.message();
  }
  bool operator==(const outcome& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return ids == other.ids && counts == other.counts && same(weights, other.weights) &&
           same(signal, other.signal) && std::memcmp(&metrics, &other.metrics, sizeof metrics) == 0;
  }
};

/// One shape: one token, which has code of its own, and one more than a block of any width.
template <class Logit>
long expect_same_bits(const gating& model, inputs::sequence& from) {
  long compared = 0;
  const std::vector<float> bias = logits_of<float>(from, model.num_experts);
  const int half = model.top_k > 1 ? model.top_k / 2 : 1;
  k_policy policy = model.top_k > 1
                        ? k_policy::entropy({half, model.top_k}, {from.chance(2) ? 1.5f : 0.7f})
                        : k_policy::full();
  if (from.chance(4)) policy = k_policy::top_p(0.7f, model.top_k);
  policy.mass_exponent = static_cast<float>(from.below(3)) * 0.5f;
  for (const int tokens : {1, 17}) {
    const auto logits = logits_of<Logit>(from, tokens * model.num_experts);
    const outcome expected(model, policy, logits, tokens, bias, instruction_set::scalar);
    for (const instruction_set set :
         {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
      if (!is_available(set)) continue;
      const outcome got(model, policy, logits, tokens, bias, set);
      EXPECT_TRUE(got == expected)
          << name_of(set) << ", E " << model.num_experts << ", K0 " << model.top_k << ", T "
          << tokens << ", gating " << static_cast<int>(model.kind);
      ++compared;
    }
  }
  return compared;
}

template <class Logit>
void sweep(gating_kind kind, bool selection_bias, std::uint64_t seed) {
  inputs::sequence from(seed);
  long compared = 0;
  gating model;
  model.kind = kind;
  model.selection_bias = selection_bias;
  for (model.num_experts = 1; model.num_experts <= max_experts; ++model.num_experts)
    for (const int top_k : top_k_of(model.num_experts)) {
      model.top_k = top_k;
      compared += expect_same_bits<Logit>(model, from);
      if (::testing::Test::HasFailure()) return;
    }
  EXPECT_GE(compared, 2 * max_experts);
}

TEST(ShapeSweep, SoftmaxOfFloats) {
  sweep<float>(gating_kind::softmax, false, 1);
}
TEST(ShapeSweep, SigmoidWithBias) {
  sweep<float>(gating_kind::sigmoid, true, 2);
}
TEST(ShapeSweep, TopKSoftmaxOfBfloat16s) {
  if (!exhaustive()) GTEST_SKIP() << "with ADAPTIVE_K_EXHAUSTIVE=1";
  sweep<bfloat16>(gating_kind::top_k_softmax, false, 3);
}
TEST(ShapeSweep, SqrtSoftplusOfFloat16s) {
  if (!exhaustive()) GTEST_SKIP() << "with ADAPTIVE_K_EXHAUSTIVE=1";
  sweep<float16>(gating_kind::sqrt_softplus, false, 4);
}

}  // namespace

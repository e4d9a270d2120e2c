// Every instruction set gives the bits of the scalar path: outputs and metrics, memory by memory.
// A fault is told by the seed of the call.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the test is about it

constexpr instruction_set vector_sets[] = {instruction_set::generic, instruction_set::avx2,
                                           instruction_set::avx512};

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

gating gating_of(int num_experts, int top_k) {
  gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  return g;
}

/// Everything a call takes, drawn from a seed.
template <class Logit>
struct random_call {
  inputs::sequence from;
  gating model;
  k_policy policy;
  fill_id fill = fill_id::minus_one;
  std::int64_t num_tokens = 0;
  std::int64_t row_stride = 0;
  bool shadow = false;
  std::vector<Logit> logits;
  std::vector<float> bias;
  std::vector<std::uint8_t> padding, k_min, k_max;

  explicit random_call(std::uint64_t seed) : from(seed) {
    static const std::vector<int> experts = {1,   2,   3,   8,   16,  17,  31,  60,  64,  65,
                                             100, 128, 160, 255, 256, 257, 384, 513, 1024};
    static const std::vector<std::int64_t> tokens = {0, 1, 2, 7, 15, 16, 17, 33, 48, 101};
    static const std::vector<gating_kind> kinds = {
        gating_kind::softmax,       gating_kind::softmax,       gating_kind::sigmoid,
        gating_kind::top_k_softmax, gating_kind::sqrt_softplus, gating_kind::sparsemixer};
    model.kind = from.pick(kinds);
    model.num_experts = from.pick(experts);
    const int most = model.num_experts < max_top_k ? model.num_experts : max_top_k;
    model.top_k = from.chance(3) ? from.between(1, most) : from.between(1, most < 8 ? most : 8);
    model.renormalize = from.chance(2);
    if (model.kind == gating_kind::sparsemixer) {
      model.top_k = model.num_experts < 2 ? 1 : 2;
      model.renormalize = false;
      if (model.num_experts < 2) model.kind = gating_kind::softmax;
    }
    if (from.chance(3)) model.routed_scaling_factor = 2.5f;
    model.selection_bias = from.chance(4) && model.kind != gating_kind::top_k_softmax &&
                           model.kind != gating_kind::sparsemixer;
    if (from.chance(8) && model.num_experts % 4 == 0 && model.top_k <= model.num_experts / 2 &&
        model.kind != gating_kind::sparsemixer) {
      model.n_group = 4;
      model.topk_group = 2;
      if (from.chance(2)) model.group_rank = group_score::maximum;
    }
    policy = random_policy();
    fill = static_cast<fill_id>(from.below(3));
    num_tokens = from.pick(tokens);
    row_stride = from.chance(3) ? model.num_experts + from.between(1, 9) : 0;
    shadow = from.chance(5);
    make_logits();
    for (int e = 0; model.selection_bias && e < model.num_experts; ++e)
      bias.push_back(inputs::grid_logit(from, 8));
    if (from.chance(4))
      for (std::int64_t t = 0; t < num_tokens; ++t) padding.push_back(from.chance(9) ? 1 : 0);
    if (from.chance(5))
      for (std::int64_t t = 0; t < num_tokens; ++t) {
        const int low = from.between(1, model.top_k);
        k_min.push_back(static_cast<std::uint8_t>(low));
        k_max.push_back(static_cast<std::uint8_t>(from.between(low, model.top_k)));
      }
  }

  k_policy random_policy() {
    k_policy chosen = k_policy::full();
    const int top_k = model.top_k;
    const int half = top_k > 1 ? top_k / 2 : 1;
    switch (from.below(5)) {
      case 0:
        break;
      case 1:
        chosen = k_policy::fixed(half);
        break;
      case 2:
        chosen = k_policy::top_p(0.7f, top_k);
        break;
      default:
        if (top_k > 1) chosen = k_policy::entropy({half, top_k}, {1.5f});
        break;
    }
    chosen.mass_exponent = static_cast<float>(from.below(3)) * 0.5f;
    if (from.chance(4)) {
      chosen.num_super_experts = 1;
      chosen.super_experts[0] = static_cast<std::uint16_t>(from.below(model.num_experts));
    }
    if (from.chance(4)) chosen.domain = {true, 0.9f, 1.6f, 0.2f, 0.4f};
    return chosen;
  }

  void make_logits() {
    const std::int64_t stride = row_stride != 0 ? row_stride : model.num_experts;
    const float special[] = {std::numeric_limits<float>::quiet_NaN(),
                             math::infinity,
                             -math::infinity,
                             -0.0f,
                             3e38f,
                             -3e38f,
                             1e-40f};
    const bool ties = from.chance(2);
    logits.assign(at(num_tokens * stride), from_float<Logit>(special[0]));
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const bool odd_row = from.chance(12);
      const bool all_bad = odd_row && from.chance(3);
      for (int e = 0; e < model.num_experts; ++e) {
        float logit = ties ? inputs::grid_logit(from, 40) : inputs::fine_logit(from);
        if (odd_row && from.chance(6)) logit = special[from.below(7)];
        if (all_bad) logit = special[from.below(3)];
        logits[at(t * stride + e)] = from_float<Logit>(logit);
      }
    }
  }
};

/// What a call writes, filled with a pattern before.
template <class Id, class Weight>
struct outputs {
  std::vector<Id> ids;
  std::vector<Weight> weights;
  std::vector<std::int32_t> counts, chosen;
  std::vector<float> signal;
  routing_metrics metrics;
  std::vector<Id> replayed_ids;
  std::vector<Weight> replayed_weights;

  template <class Logit>
  status run(const random_call<Logit>& call, instruction_set set) {
    const std::int64_t slots = call.num_tokens * call.model.top_k;
    ids.assign(at(slots + 1), Id(77));
    weights.assign(at(slots + 1), from_float<Weight>(77.0f));
    counts.assign(at(call.num_tokens + 1), 77);
    chosen = counts;
    signal.assign(counts.size(), 77.0f);
    router_options options;
    options.fill = call.fill;
    options.instructions = set;
    const router r(call.model, call.policy, options);
    routing_output<Id, Weight> output = {ids.data(), weights.data(), counts.data(), signal.data()};
    if (call.shadow) output.chosen_counts = chosen.data();
    routing_extras extras;
    if (!call.bias.empty()) extras.routing_bias = call.bias.data();
    if (!call.padding.empty()) extras.padding_mask = call.padding.data();
    if (!call.k_min.empty()) extras.k_min = call.k_min.data();
    if (!call.k_max.empty()) extras.k_max = call.k_max.data();
    const logits_view<Logit> view = {call.logits.data(), call.num_tokens, call.model.num_experts,
                                     call.row_stride};
    const status routed = r.route(0, view, output, &metrics, extras);
    if (!routed.ok()) return routed;
    // Given any experts, in any order and number, the best of the others follow.
    inputs::sequence from(static_cast<std::uint64_t>(slots));
    std::vector<Id> given(at(slots + 1));
    std::vector<std::int32_t> given_counts(counts.size());
    for (std::int64_t t = 0; t < call.num_tokens; ++t) {
      given_counts[at(t)] = from.between(0, call.model.top_k);
      const int first = from.below(call.model.num_experts);
      for (int j = 0; j < call.model.top_k; ++j)
        given[at(t * call.model.top_k + j)] =
            static_cast<Id>((first + call.model.num_experts - j) % call.model.num_experts);
    }
    replayed_ids = ids;
    replayed_weights = weights;
    output = {replayed_ids.data(), replayed_weights.data()};
    if (call.num_tokens == 0) return routed;
    return r.replay(0, view, routing_replay<Id>{given.data(), given_counts.data()}, output,
                    &metrics, extras);
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class Logit, class Id, class Weight>
void expect_same_bits(std::uint64_t first_seed, int calls) {
  long routed = 0;
  int sets = 0;
  for (const instruction_set set : vector_sets) {
    if (!is_available(set)) continue;
    ++sets;
    for (std::uint64_t seed = first_seed; seed < first_seed + static_cast<std::uint64_t>(calls);
         ++seed) {
      const random_call<Logit> call(seed);
      outputs<Id, Weight> expected, got;
      const status result = expected.run(call, instruction_set::scalar);
      ASSERT_TRUE(result.ok()) << "seed " << seed << ": " << result.message();
      ASSERT_TRUE(got.run(call, set).ok());
      ASSERT_TRUE(same_bits(expected.ids, got.ids) && same_bits(expected.weights, got.weights) &&
                  same_bits(expected.counts, got.counts) &&
                  same_bits(expected.chosen, got.chosen) &&
                  same_bits(expected.replayed_ids, got.replayed_ids) &&
                  same_bits(expected.replayed_weights, got.replayed_weights) &&
                  same_bits(expected.signal, got.signal) &&
                  std::memcmp(&expected.metrics, &got.metrics, sizeof got.metrics) == 0)
          << name_of(set) << ", seed " << seed << ", E " << call.model.num_experts << ", K "
          << call.model.top_k << ", T " << call.num_tokens;
      routed += static_cast<long>(got.metrics.tokens);
    }
  }
  // The library has every set; what the machine lacks is left out, but never all of them.
  EXPECT_GE(sets, 1);
  EXPECT_GE(routed, calls);
}

TEST(InstructionSets, SameBitsForFloat) {
  expect_same_bits<float, std::int32_t, float>(1, 900);
}
TEST(InstructionSets, SameBitsForBfloat16) {
  expect_same_bits<bfloat16, std::int32_t, float>(2001, 400);
}
TEST(InstructionSets, SameBitsForFloat16) {
  expect_same_bits<float16, std::int32_t, float>(4001, 400);
}
TEST(InstructionSets, SameBitsForOtherOutputs) {
  expect_same_bits<float, std::int64_t, float16>(6001, 300);
}

TEST(InstructionSets, ManyTokens) {
  inputs::sequence from(7);
  gating g;
  g.num_experts = 60;
  g.top_k = 4;
  std::vector<float> logits(at(5003 * 60));
  for (float& logit : logits) logit = inputs::fine_logit(from);
  const logits_view<float> view = {logits.data(), 5003, 60, 0};
  const k_policy policy = k_policy::entropy({2, 4}, {2.2f});
  router_options options;
  options.instructions = instruction_set::scalar;
  routing_metrics expected_metrics;
  const routed_batch expected = router(g, policy, options).route(0, view, &expected_metrics);
  for (const instruction_set set : vector_sets) {
    if (!is_available(set)) continue;
    options.instructions = set;
    routing_metrics metrics;
    const routed_batch got = router(g, policy, options).route(0, view, &metrics);
    EXPECT_TRUE(same_bits(expected.topk_ids, got.topk_ids)) << name_of(set);
    EXPECT_TRUE(same_bits(expected.topk_weights, got.topk_weights)) << name_of(set);
    EXPECT_TRUE(same_bits(expected.signal, got.signal)) << name_of(set);
    EXPECT_EQ(std::memcmp(&expected_metrics, &metrics, sizeof metrics), 0) << name_of(set);
  }
}

/// The call that has code of its own, with logits that are hard on selection keys.
enum class hard {
  fine,
  ties,
  equal_distances,
  zeros,
  huge,
  not_finite,
  crowded,
  crowded_ties,
  far,      ///< an expert or two so far below the others that it has no score
  far_rows  ///< the same in rows that follow ordinary ones, many at once
};

template <class Logit>
random_call<Logit> usual_call(std::uint64_t seed, int num_experts, int top_k, hard what) {
  random_call<Logit> call(seed);
  inputs::sequence& from = call.from;
  call.model = gating{};
  call.model.num_experts = num_experts;
  call.model.top_k = top_k;
  if (from.chance(3)) call.model.kind = gating_kind::top_k_softmax;
  if (from.chance(4)) call.model.routed_scaling_factor = 2.5f;
  call.policy = k_policy::entropy({top_k / 2, top_k}, {from.chance(2) ? 0.5f : 1.2f});
  if (from.chance(4)) call.policy = k_policy::fixed(top_k / 2);
  call.policy.mass_exponent = static_cast<float>(from.below(3)) * 0.5f;
  if (from.chance(4)) call.policy.k_min = static_cast<std::uint8_t>(from.between(1, top_k));
  if (from.chance(4))
    call.policy.k_max = static_cast<std::uint8_t>(from.between(call.policy.k_min, 32));
  static const std::vector<std::int64_t> tokens = {1, 1, 2, 16, 33, 16 * 15 + 35};
  call.num_tokens = from.pick(tokens);
  call.row_stride = from.chance(3) ? num_experts + from.between(1, 9) : 0;
  call.shadow = false;
  call.bias.clear();
  call.padding.clear();
  call.k_min.clear();
  call.k_max.clear();
  const std::int64_t stride = call.row_stride != 0 ? call.row_stride : num_experts;
  call.logits.assign(at(call.num_tokens * stride), from_float<Logit>(9.0f));
  for (std::int64_t t = 0; t < call.num_tokens; ++t) {
    const int peak = from.below(num_experts);
    for (int e = 0; e < num_experts; ++e) {
      float logit = inputs::fine_logit(from);
      if (what == hard::ties) logit = inputs::grid_logit(from, 12);
      // Rounding makes all distances from the peak equal, but not the logits.
      if (what == hard::equal_distances)
        logit = e == peak ? 20.0f : 1e-9f * static_cast<float>(from.below(5));
      if (what == hard::zeros) logit = from.chance(2) ? 0.0f : -0.0f;
      if (what == hard::huge) logit *= 1e37f;
      if (what == hard::far && from.chance(num_experts)) logit -= from.chance(2) ? 87.0f : 1e4f;
      if (what == hard::far_rows && t >= 40 && t < 72) logit *= 30.0f;
      // The best ones are all in one lane of a vector, of whatever width.
      if (what == hard::crowded && (e - peak) % 16 == 0) logit += 30.0f;
      if (what == hard::crowded_ties) {
        const bool best = (e - peak) % 16 == 0 || from.chance(num_experts / 4 + 1);
        logit = best ? 20.0f + inputs::grid_logit(from, 1) : 0.0f;
      }
      if (what == hard::not_finite && from.chance(20))
        logit = from.chance(2) ? -math::infinity : std::numeric_limits<float>::quiet_NaN();
      call.logits[at(t * stride + e)] = from_float<Logit>(logit);
    }
  }
  return call;
}

template <class Logit>
void expect_same_bits_of_usual_calls(std::uint64_t seed) {
  int sets = 0;
  for (const instruction_set set : vector_sets) {
    if (!is_available(set)) continue;
    ++sets;
    for (const int num_experts : {2, 4, 5, 8, 9, 12, 16, 31, 60, 64, 100, 128, 160, 255, 256})
      for (const int top_k : {2, 4, 8})
        for (const hard what :
             {hard::fine, hard::ties, hard::equal_distances, hard::zeros, hard::huge,
              hard::not_finite, hard::crowded, hard::crowded_ties, hard::far, hard::far_rows})
          for (int turn = 0; turn < 4; ++turn) {
            if (top_k > num_experts) continue;
            const auto call = usual_call<Logit>(++seed, num_experts, top_k, what);
            outputs<std::int32_t, float> expected, got;
            ASSERT_TRUE(expected.run(call, instruction_set::scalar).ok());
            ASSERT_TRUE(got.run(call, set).ok());
            ASSERT_TRUE(
                same_bits(expected.ids, got.ids) && same_bits(expected.weights, got.weights) &&
                same_bits(expected.counts, got.counts) && same_bits(expected.signal, got.signal) &&
                std::memcmp(&expected.metrics, &got.metrics, sizeof got.metrics) == 0)
                << name_of(set) << ", seed " << seed << ", E " << num_experts << ", K " << top_k
                << ", T " << call.num_tokens << ", logits " << static_cast<int>(what);
          }
  }
  EXPECT_GE(sets, 1);
}

TEST(InstructionSets, UsualCallsOfFloats) {
  expect_same_bits_of_usual_calls<float>(8000);
}
TEST(InstructionSets, UsualCallsOfBfloat16s) {
  expect_same_bits_of_usual_calls<bfloat16>(20000);
}

/// Single tokens are counted by code of their own, into a struct that other calls have filled, with
/// signals that may be negative.
TEST(InstructionSets, SingleTokensAreCountedAmongOthers) {
  for (const gating g : {gating_of(8, 2), gating_of(60, 4), gating_of(128, 8)}) {
    gating biased = g;
    biased.kind = gating_kind::sigmoid;
    biased.selection_bias = true;
    const std::vector<float> bias(at(g.num_experts), 0.5f);
    routing_metrics expected;
    for (const instruction_set set : {instruction_set::scalar, instruction_set::generic,
                                      instruction_set::avx2, instruction_set::avx512}) {
      if (!is_available(set)) continue;
      router_options options;
      options.instructions = set;
      routing_extras extras;
      extras.routing_bias = bias.data();
      const auto margin = k_policy::with_thresholds(signal_kind::margin, {1, 2}, {0.5f});
      const router by_margin(biased, margin, options);
      const router by_entropy(g, k_policy::entropy({1, g.top_k}, {1.2f}), options);
      inputs::sequence from(11);
      routing_metrics metrics;
      for (int token = 0; token < 200; ++token) {
        std::vector<float> logits;
        for (int e = 0; e < g.num_experts; ++e)
          logits.push_back(inputs::fine_logit(from) * (token % 3 == 0 ? 0.1f : 1.5f));
        const logits_view<float> view = {logits.data(), 1, g.num_experts, 0};
        if (token % 40 == 3)
          ASSERT_TRUE(by_margin.route(0, view, &metrics, extras).result.ok());
        else
          ASSERT_TRUE(by_entropy.route(0, view, &metrics).result.ok());
      }
      if (set == instruction_set::scalar) expected = metrics;
      EXPECT_EQ(std::memcmp(&expected, &metrics, sizeof metrics), 0)
          << name_of(set) << ", E " << g.num_experts << ": signals " << metrics.signal_lowest
          << ".." << metrics.signal_highest << ", expected " << expected.signal_lowest << ".."
          << expected.signal_highest;
    }
  }
}

TEST(InstructionSets, RouterSaysWhatItRunsOn) {
  gating g;
  g.num_experts = 8;
  g.top_k = 2;
  EXPECT_EQ(router(g, k_policy::full()).instructions(), best_instruction_set());
  router_options options;
  options.instructions = instruction_set::scalar;
  EXPECT_EQ(router(g, k_policy::full(), options).instructions(), instruction_set::scalar);
}

}  // namespace

// Refusals: what a router will not do, what it says, and that it then writes nothing.
#include <functional>
#include <regex>

#include "checked_batch.hpp"

namespace {

using namespace checked;  // NOLINT(google-build-using-namespace)

/// The field that a sentence is about, as a reader finds it; "" where it is about several.
std::string field_in(const std::string& message) {
  static const std::regex about_several(
      "token [0-9]+: k_min = .*|sparsemixer takes neither .*|(layer [0-9]+: )?k_values has .*");
  static const std::regex about_one(
      "(?:layer [0-9]+: )?(?:logits have |fixed )?([a-z_.]+(?:\\[[0-9, ]+\\])?) (?:is|=) .*");
  std::smatch found;
  if (std::regex_match(message, found, about_one)) return found[1];
  EXPECT_TRUE(std::regex_match(message, about_several)) << message;
  return "";
}

/// Of every refusal: its code, that it says `parts`, and that it knows the field it names.
void expect_mentions(const status& result, status_code code,
                     const std::vector<std::string>& parts) {
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.code(), code) << result.message();
  const std::string message = result.message();
  EXPECT_EQ(result.field(), field_in(message)) << message;
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' not in: " << message;
}

/// A call that would succeed, with everything in it open to spoiling.
struct call {
  gating g = make_gating(gating_kind::softmax, 8, 4);
  std::vector<k_policy> policies = {k_policy::top_p(0.7f, 4), k_policy::full()};
  int layer = 1;
  std::vector<float> logits = std::vector<float>(3 * 8, 0.5f);
  std::vector<float> bias = std::vector<float>(8, 0.25f);
  std::vector<std::uint8_t> k_min = {1, 2, 1}, k_max = {4, 4, 3};
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(12, 77);
  std::vector<float> weights = std::vector<float>(12, 7.5f);
  std::vector<std::int32_t> counts = std::vector<std::int32_t>(3, 77);
  std::vector<float> signal = std::vector<float>(3, 7.5f);
  logits_view<float> view = {logits.data(), 3, 8};
  routing_output<> output = {ids.data(), weights.data(), counts.data(), signal.data()};
  routing_extras extras;

  status run() {
    routing_metrics metrics;
    metrics.tokens = 5;
    const status result = router(g, policies).route(layer, view, output, &metrics, extras);
    if (!result.ok()) {
      EXPECT_EQ(ids, std::vector<std::int32_t>(12, 77));
      EXPECT_EQ(weights, std::vector<float>(12, 7.5f));
      EXPECT_EQ(counts, std::vector<std::int32_t>(3, 77));
      EXPECT_EQ(signal, std::vector<float>(3, 7.5f));
      EXPECT_EQ(metrics.tokens, 5u);
      EXPECT_EQ(metrics.calls, 0u);
      const routed_batch convenient = router(g, policies).route(layer, view, &metrics, extras);
      if (output.topk_ids != nullptr && output.topk_weights != nullptr) {
        EXPECT_FALSE(convenient.result.ok());
        EXPECT_STREQ(convenient.result.message(), result.message());
        EXPECT_EQ(convenient.result.field(), result.field());
        EXPECT_TRUE(convenient.topk_ids.empty());
      }
    }
    return result;
  }
};

TEST(Refusals, TheUnspoiltCallSucceeds) {
  call c;
  const status result = c.run();
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.code(), status_code::ok);
  EXPECT_STREQ(result.message(), "");
  EXPECT_EQ(result.field(), "");
  EXPECT_NE(c.ids[0], 77);
}

struct spoilt {
  const char* what;
  std::function<void(call&)> spoil;
  status_code code;
  std::vector<std::string> parts;
};

TEST(Refusals, OfOneCall) {
  const auto invalid = status_code::invalid_argument;
  const auto shape = status_code::shape_mismatch;
  const std::vector<spoilt> cases = {
      {"layer below", [](call& c) { c.layer = -1; }, invalid, {"layer", "-1"}},
      {"layer above", [](call& c) { c.layer = 2; }, invalid, {"layer", "2", "0..1"}},
      {"experts", [](call& c) { c.view.num_experts = 7; }, shape, {"num_experts", "7", "8"}},
      {"tokens", [](call& c) { c.view.num_tokens = -3; }, invalid, {"num_tokens", "-3"}},
      {"too many tokens",
       [](call& c) { c.view.num_tokens = std::int64_t{1} << 31; },
       invalid,
       {"num_tokens", "2147483648", "0..2147483647"}},
      {"stride", [](call& c) { c.view.row_stride = 7; }, shape, {"row_stride", "7", "8"}},
      {"stride below 0", [](call& c) { c.view.row_stride = -8; }, shape, {"row_stride", "-8"}},
      {"logits", [](call& c) { c.view.data = nullptr; }, invalid, {"logits.data", "null"}},
      {"ids", [](call& c) { c.output.topk_ids = nullptr; }, invalid, {"topk_ids", "null"}},
      {"weights",
       [](call& c) { c.output.topk_weights = nullptr; },
       invalid,
       {"topk_weights", "null"}},
      {"bias missing",
       [](call& c) { c.g.selection_bias = true; },
       invalid,
       {"routing_bias", "null", "selection_bias"}},
      {"bias unexpected",
       [](call& c) { c.extras.routing_bias = c.bias.data(); },
       invalid,
       {"routing_bias", "given", "selection_bias"}},
      {"k_min 0",
       [](call& c) {
         c.k_min[1] = 0;
         c.extras.k_min = c.k_min.data();
       },
       invalid,
       {"token 1", "k_min = 0", "top_k = 4"}},
      {"k_min above top_k",
       [](call& c) {
         c.k_min[2] = 5;
         c.extras.k_min = c.k_min.data();
       },
       invalid,
       {"token 2", "k_min = 5", "top_k = 4"}},
      {"k_max above top_k",
       [](call& c) {
         c.k_max[0] = 5;
         c.extras.k_max = c.k_max.data();
       },
       invalid,
       {"token 0", "k_max = 5", "top_k = 4"}},
      {"k_max 0",
       [](call& c) {
         c.k_max[0] = 0;
         c.extras.k_max = c.k_max.data();
       },
       invalid,
       {"token 0", "k_max = 0"}},
      {"k_min above k_max",
       [](call& c) {
         c.k_min[2] = 4;
         c.extras.k_min = c.k_min.data();
         c.extras.k_max = c.k_max.data();
       },
       invalid,
       {"token 2", "k_min = 4", "k_max = 3"}},
  };
  for (const spoilt& spoiling : cases) {
    SCOPED_TRACE(spoiling.what);
    call c;
    spoiling.spoil(c);
    expect_mentions(c.run(), spoiling.code, spoiling.parts);
  }
}

struct bad_gating {
  const char* what;
  std::function<void(gating&)> spoil;
  status_code code;
  std::vector<std::string> parts;
};

TEST(Refusals, OfAGating) {
  const auto invalid = status_code::invalid_argument;
  const auto unsupported = status_code::unsupported;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto sparsemixer = [](gating& g) {
    g.kind = gating_kind::sparsemixer;
    g.top_k = 2;
    g.renormalize = false;
  };
  const std::vector<bad_gating> cases = {
      {"default", [](gating& g) { g = gating{}; }, invalid, {"num_experts", "0", "1..1024"}},
      {"E 1025", [](gating& g) { g.num_experts = 1025; }, invalid, {"num_experts", "1025"}},
      {"E below", [](gating& g) { g.num_experts = -8; }, invalid, {"num_experts", "-8"}},
      {"K0 0", [](gating& g) { g.top_k = 0; }, invalid, {"top_k", "0", "1..8"}},
      {"K0 above E", [](gating& g) { g.top_k = 9; }, invalid, {"top_k", "9", "1..8"}},
      {"K0 33",
       [](gating& g) {
         g.num_experts = 64;
         g.top_k = 33;
       },
       invalid,
       {"top_k", "33", "1..32"}},
      {"scale 0",
       [](gating& g) { g.routed_scaling_factor = 0; },
       invalid,
       {"routed_scaling_factor", "0"}},
      {"scale below",
       [](gating& g) { g.routed_scaling_factor = -2.5f; },
       invalid,
       {"routed_scaling_factor", "-2.5"}},
      {"scale NaN",
       [nan](gating& g) { g.routed_scaling_factor = nan; },
       invalid,
       {"routed_scaling_factor", "nan"}},
      {"n_group 0", [](gating& g) { g.n_group = 0; }, invalid, {"n_group", "0"}},
      {"n_group 3", [](gating& g) { g.n_group = 3; }, invalid, {"n_group", "3", "8"}},
      {"topk_group 0", [](gating& g) { g.topk_group = 0; }, invalid, {"topk_group", "0"}},
      {"topk_group above",
       [](gating& g) {
         g.n_group = 4;
         g.topk_group = 5;
       },
       invalid,
       {"topk_group", "5", "4"}},
      {"groups too small for K0",
       [](gating& g) {
         g.n_group = 8;
         g.topk_group = 3;
       },
       invalid,
       {"topk_group", "3", "top_k = 4"}},
      {"too many groups",
       [](gating& g) { g.num_experts = g.n_group = g.topk_group = 64; },
       unsupported,
       {"n_group", "64", "32"}},
      {"sparsemixer K0",
       [=](gating& g) {
         sparsemixer(g);
         g.top_k = 3;
       },
       unsupported,
       {"top_k", "3", "sparsemixer"}},
      {"sparsemixer renormalised",
       [=](gating& g) {
         sparsemixer(g);
         g.renormalize = true;
       },
       unsupported,
       {"sparsemixer", "renormalize"}},
      {"sparsemixer epsilon",
       [=](gating& g) {
         sparsemixer(g);
         g.jitter_epsilon = 1.5f;
       },
       invalid,
       {"jitter_epsilon", "1.5"}},
      {"no such kind",
       [](gating& g) { g.kind = static_cast<gating_kind>(99); },
       invalid,
       {"kind", "99"}},
  };
  for (const bad_gating& bad : cases) {
    SCOPED_TRACE(bad.what);
    call c;
    c.policies = {k_policy::full(), k_policy::full()};
    bad.spoil(c.g);
    expect_mentions(validate(c.g), bad.code, bad.parts);
    const router refusing(c.g, c.policies);
    expect_mentions(refusing.validity(), bad.code, bad.parts);
    c.view.num_experts = c.g.num_experts;
    c.view.data = c.logits.data();
    expect_mentions(c.run(), bad.code, bad.parts);
    const router copy = refusing;  // NOLINT: the copy is what is tested
    expect_mentions(copy.route(0, c.view, c.output), bad.code, bad.parts);
  }
}

struct bad_policy {
  const char* what;
  k_policy policy;
  std::vector<std::string> parts;
};

template <class Change>
k_policy changed(k_policy policy, Change change) {
  change(policy);
  return policy;
}

TEST(Refusals, OfAPolicy) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const float coefficients[15] = {};
  distortion_ref fine;
  fine.coefficients = coefficients;
  const auto with = [&fine](auto change) {
    distortion_ref spoilt_model = fine;
    change(spoilt_model);
    return k_policy::min_distortion(spoilt_model);
  };
  const auto kind = signal_kind::margin;
  const std::vector<bad_policy> cases = {
      {"k_min 0", changed(k_policy::full(), [](k_policy& p) { p.k_min = 0; }), {"k_min", "0"}},
      {"k_min 5", changed(k_policy::full(), [](k_policy& p) { p.k_min = 5; }), {"k_min", "5", "4"}},
      {"k_max below k_min",
       changed(k_policy::full(),
               [](k_policy& p) {
                 p.k_min = 3;
                 p.k_max = 2;
               }),
       {"k_max", "2", "3"}},
      {"a above 1",
       changed(k_policy::full(), [](k_policy& p) { p.mass_exponent = 1.5f; }),
       {"mass_exponent", "1.5"}},
      {"a below 0",
       changed(k_policy::full(), [](k_policy& p) { p.mass_exponent = -0.5f; }),
       {"mass_exponent", "-0.5"}},
      {"a NaN",
       changed(k_policy::full(), [nan](k_policy& p) { p.mass_exponent = nan; }),
       {"mass_exponent", "nan"}},
      {"fixed 0", k_policy::fixed(0), {"fixed", "0", "4"}},
      {"fixed 5", k_policy::fixed(5), {"fixed k is 5, expected 1..top_k = 4"}},
      {"fixed 33", k_policy::fixed(33), {"fixed k is 33, expected 1..top_k = 4"}},
      {"fixed past a byte", k_policy::fixed(257), {"fixed k is 257, expected 1..top_k = 4"}},
      {"fixed -1", k_policy::fixed(-1), {"fixed k is -1, expected 1..top_k = 4"}},
      {"fixed without a value",
       changed(k_policy::fixed(2), [](k_policy& p) { p.num_k_values = 0; }),
       {"num_k_values is 0, expected 1"}},
      {"no values", k_policy::entropy({}, {}), {"num_k_values is 0, expected 1..32"}},
      {"as many thresholds as values",
       k_policy::entropy({1, 2}, {0.5f, 1.0f}),
       {"k_values has 2 values and thresholds 2, expected 1..32 k_values and one threshold fewer"}},
      {"two thresholds short",
       k_policy::entropy({1, 2, 4}, {0.5f}),
       {"k_values has 3 values and thresholds 1, expected"}},
      {"more values than there is room for",
       changed(k_policy::entropy({1, 2}, {0.5f}), [](k_policy& p) { p.num_k_values = 40; }),
       {"num_k_values is 40, expected 1..32"}},
      {"33 values",
       k_policy::with_thresholds(signal_kind::topk_mass,
                                 {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1, 1, 1, 1, 1, 1,
                                  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                 {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
       {"k_values has 33 values and thresholds 32, expected 1..32"}},
      {"value 0", k_policy::entropy({0, 2}, {0.5f}), {"k_values[0]", "0"}},
      {"value -1", k_policy::entropy({-1, 2}, {0.5f}), {"k_values[0] is -1, expected 1..4"}},
      {"value past a byte",
       k_policy::entropy({1, 258}, {0.5f}),
       {"k_values[1] is 258, expected 2..4"}},
      {"value after K0",
       k_policy::entropy({1, 4, 5}, {0.5f, 0.7f}),
       {"k_values[2] is 5, expected no value after top_k = 4"}},
      {"value above K0", k_policy::entropy({1, 5}, {0.5f}), {"k_values[1]", "5", "4"}},
      {"values equal", k_policy::entropy({2, 2}, {0.5f}), {"k_values[1]", "2"}},
      {"values fall", k_policy::entropy({1, 3, 2}, {0.5f, 1.0f}), {"k_values[2]", "2"}},
      {"thresholds equal", k_policy::entropy({1, 2, 4}, {0.5f, 0.5f}), {"thresholds[1]", "0.5"}},
      {"thresholds fall", k_policy::entropy({1, 2, 4}, {0.5f, 0.25f}), {"thresholds[1]", "0.25"}},
      {"threshold NaN", k_policy::entropy({1, 2}, {nan}), {"thresholds[0]", "nan"}},
      {"threshold infinite", k_policy::entropy({1, 2}, {infinity}), {"thresholds[0]", "inf"}},
      {"margins rise",
       k_policy::with_thresholds(kind, {1, 2, 4}, {0.25f, 0.5f}),
       {"thresholds[1]", "0.5", "0.25"}},
      {"mass above 1", k_policy::top_p(1.25f, 4), {"thresholds[0]", "1.25"}},
      {"mass below 0", k_policy::top_p(-0.25f, 4), {"thresholds[0]", "-0.25"}},
      {"mass NaN", k_policy::top_p(nan, 4), {"thresholds[0] is nan, expected 0..1"}},
      {"ratio above 1", k_policy::score_ratio(2.0f, 4), {"thresholds[0]", "2"}},
      {"threshold past the range",
       k_policy::entropy({1, 2}, {2e30f}),
       {"thresholds[0] is 2e+30, expected more than -1e30, below 1e30"}},
      {"top_p of another K0",
       k_policy::top_p(0.5f, 8),
       {"top_k is 8 in the top_p policy, expected the gating's own, 4", "at most 4", "k_max"}},
      {"top_p of a smaller K0",
       k_policy::top_p(0.5f, 2),
       {"top_k is 2 in the top_p policy, expected the gating's own, 4", "at most 2", "k_max"}},
      {"top_p of no K0", k_policy::top_p(0.5f, -1), {"top_k is -1 in the top_p policy"}},
      {"top_p past every K0", k_policy::top_p(0.5f, 33), {"top_k is 33 in the top_p policy"}},
      {"score_ratio of another K0",
       k_policy::score_ratio(0.5f, 2),
       {"top_k is 2 in the score_ratio policy, expected the gating's own, 4"}},
      {"no signal", k_policy::with_thresholds(signal_kind::none, {1, 2}, {0.5f}), {"signal"}},
      {"no coefficients",
       with([](distortion_ref& m) { m.coefficients = nullptr; }),
       {"coefficients", "null"}},
      {"g 0", with([](distortion_ref& m) { m.sensitivity = 0.0f; }), {"sensitivity", "0"}},
      {"g past the range",
       with([](distortion_ref& m) { m.sensitivity = 2e30f; }),
       {"distortion.sensitivity is 2e+30, expected above 0, below 1e30"}},
      {"g NaN", with([nan](distortion_ref& m) { m.sensitivity = nan; }), {"sensitivity", "nan"}},
      {"lambda -1", with([](distortion_ref& m) { m.lambda = -1.0f; }), {"lambda", "-1"}},
      {"lambda NaN", with([nan](distortion_ref& m) { m.lambda = nan; }), {"lambda", "nan"}},
      {"no such rule",
       changed(k_policy::full(), [](k_policy& p) { p.rule = static_cast<k_rule>(99); }),
       {"rule", "99"}},
      {"no such signal",
       changed(k_policy::full(), [](k_policy& p) { p.signal = static_cast<signal_kind>(99); }),
       {"signal", "99"}},
  };
  for (const bad_policy& bad : cases) {
    SCOPED_TRACE(bad.what);
    call c;
    expect_mentions(validate(bad.policy, c.g), status_code::invalid_argument, bad.parts);
    const router one(c.g, bad.policy);
    expect_mentions(one.validity(), status_code::invalid_argument, bad.parts);
    expect_mentions(one.route(0, c.view, c.output), status_code::invalid_argument, bad.parts);
    c.policies = {k_policy::full(), bad.policy};  // the layer that is at fault is named
    c.layer = 0;
    std::vector<std::string> parts = bad.parts;
    parts.push_back("layer 1");
    expect_mentions(c.run(), status_code::invalid_argument, parts);
  }
}

TEST(Refusals, AtOneExpertTheRuleIsLookedAtToo) {
  gating g;
  g.num_experts = 4;
  g.top_k = 1;
  EXPECT_TRUE(validate(k_policy::top_p(0.5f, 1), g).ok());
  expect_mentions(validate(k_policy::top_p(std::numeric_limits<float>::quiet_NaN(), 1), g),
                  status_code::invalid_argument, {"thresholds[0] is nan"});
  expect_mentions(validate(k_policy::score_ratio(1.5f, 1), g), status_code::invalid_argument,
                  {"thresholds[0] is 1.5, expected 0..1"});
}

/// A smaller K0 for every token is k_max's to set, and stays possible.
TEST(Refusals, OfFewerExpertsThanTheModelsOwnIsNone) {
  gating g;
  g.num_experts = 8;
  g.top_k = 4;
  k_policy policy = k_policy::top_p(0.99f, 4);
  policy.k_max = 2;
  EXPECT_TRUE(validate(policy, g).ok());
  EXPECT_TRUE(validate(k_policy::with_thresholds(signal_kind::topk_mass, {1, 2}, {0.5f}), g).ok());
}

TEST(Refusals, OfNoPoliciesAtAll) {
  call c;
  c.policies.clear();
  c.layer = 0;
  expect_mentions(c.run(), status_code::invalid_argument, {"policies"});
}

TEST(Refusals, LongMessagesAreCutNotOverrun) {
  const std::string text(1000, 'x');
  const status cut = status::error(status_code::unsupported, "%s", text.c_str());
  EXPECT_EQ(std::string(cut.message()), text.substr(0, 223));
}

}  // namespace

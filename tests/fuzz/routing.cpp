// Routing calls of any shape and content: every instruction set gives the scalar path's bits, and
// the scalar path agrees with the oracle in double precision.
#include <adaptive_k/adaptive_k.hpp>
#include <cstring>
#include <limits>

#include "fuzz.hpp"
#include "host/checked_batch.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it
using oracle::at;

/// A call, all of it drawn from the input.
template <class Logit>
struct drawn_call {
  gating model;
  k_policy policy;
  fill_id fill = fill_id::minus_one;
  checked::batch<Logit> batch;
  bool shadow = false;
  bool on_grid =
      true;  ///< logits are multiples of 1/64 or not finite: what the oracle's bounds ask
  std::vector<float> bias, coefficients, first_expert, next_expert;
  std::vector<std::uint8_t> padding, k_min, k_max;

  explicit drawn_call(fuzz::bytes& from) {
    draw_gating(from);
    draw_policy(from);
    fill = static_cast<fill_id>(from.between(0, 2));
    shadow = from.chance(6);
    const unsigned extras = from.raw<std::uint8_t>();
    batch.num_experts = model.num_experts;
    batch.num_tokens = from.chance(8) ? from.between(17, 40) : from.between(0, 5);
    batch.row_stride = (extras & 1u) != 0 ? model.num_experts + from.between(1, 9) : 0;
    for (std::int64_t t = 0; t < batch.num_tokens; ++t) {
      if ((extras & 6u) == 2u) padding.push_back(from.chance(4) ? 1 : 0);
      if ((extras & 24u) == 8u) {
        k_min.push_back(static_cast<std::uint8_t>(from.between(1, model.top_k)));
        k_max.push_back(static_cast<std::uint8_t>(from.between(k_min.back(), model.top_k)));
      }
    }
    for (int e = 0; model.selection_bias && e < model.num_experts; ++e)
      bias.push_back(static_cast<float>(from.raw<std::int8_t>()) / 256.0f);
    draw_logits(from);
  }

  void draw_gating(fuzz::bytes& from) {
    static constexpr gating_kind kinds[] = {gating_kind::softmax, gating_kind::sigmoid,
                                            gating_kind::top_k_softmax, gating_kind::sqrt_softplus,
                                            gating_kind::sparsemixer};
    static constexpr int usual[] = {8, 16, 32, 60, 64, 128, 160, 256};
    model.kind = from.pick(kinds);
    model.num_experts = from.chance(3) ? from.between(1, 1024) : from.pick(usual);
    const int most = model.num_experts < max_top_k ? model.num_experts : max_top_k;
    model.top_k = from.between(1, most);
    model.renormalize = from.coin();
    if (from.chance(4)) model.routed_scaling_factor = 2.5f;
    if (model.kind == gating_kind::sparsemixer) {
      model.top_k = model.top_k > 2 ? 2 : model.top_k;
      model.renormalize = false;
      return;
    }
    model.selection_bias = from.chance(4);
    const int groups = from.between(0, 8);
    if (groups > 1 && model.num_experts % groups == 0) {
      model.n_group = groups;
      model.topk_group = from.between(1, groups);
      model.group_rank = static_cast<group_score>(from.between(0, 1));
      if (!validate(model).ok()) model.topk_group = groups;
    }
  }

  void draw_policy(fuzz::bytes& from) {
    policy.rule = static_cast<k_rule>(from.between(0, 3));
    policy.signal = static_cast<signal_kind>(from.between(0, 6));
    if (policy.rule == k_rule::fixed) policy = k_policy::fixed(from.between(1, model.top_k));
    if (policy.rule == k_rule::thresholds) draw_thresholds(from);
    if (policy.rule == k_rule::distortion) {
      const auto grid = [&] { return static_cast<float>(from.raw<std::int8_t>()) / 64.0f; };
      for (int k = 1; k < model.top_k; ++k)
        for (int i = 0; i < distortion_ref::num_features; ++i) coefficients.push_back(grid());
      policy.distortion.coefficients = coefficients.data();
      policy.distortion.lambda = static_cast<float>(from.between(0, 64)) / 64.0f;
      const bool tables = from.chance(3);
      for (int i = 0; tables && i < (model.top_k - 1) * model.num_experts; ++i) {
        first_expert.push_back(static_cast<float>(i * 7 % 64 - 32) / 64.0f);
        next_expert.push_back(static_cast<float>(i * 11 % 64 - 32) / 64.0f);
      }
      if (tables) {
        policy.distortion.first_expert = first_expert.data();
        policy.distortion.next_expert = next_expert.data();
      }
    }
    static constexpr float exponents[] = {k_policy::mass_exponent_of_model, 0.0f, 0.5f, 0.3f, 1.0f};
    policy.mass_exponent = from.pick(exponents);
    policy.k_min = static_cast<std::uint8_t>(from.chance(4) ? from.between(1, model.top_k) : 1);
    policy.k_max = static_cast<std::uint8_t>(from.chance(4) ? from.between(policy.k_min, 32) : 32);
    if (from.chance(4)) {
      policy.super_experts[0] = static_cast<std::uint16_t>(from.between(0, model.num_experts - 1));
      policy.num_super_experts = 1;
    }
  }

  void draw_thresholds(fuzz::bytes& from) {
    if (policy.signal == signal_kind::none) policy.signal = signal_kind::softmax_entropy;
    std::vector<int> values;
    std::vector<float> limits;
    for (int k = 1 + from.between(0, 2); k <= model.top_k && values.size() < 6;
         k += 1 + from.between(0, 3))
      values.push_back(k);
    if (values.empty()) values.push_back(model.top_k);
    const bool per_rank =
        policy.signal == signal_kind::topk_mass || policy.signal == signal_kind::score_ratio;
    const bool down = policy.signal == signal_kind::margin;
    float limit = down ? 1.0f : 0.0f;
    for (std::size_t i = 1; i < values.size(); ++i) {
      const float step = static_cast<float>(from.between(1, 255)) / (down ? 2048.0f : 256.0f);
      limit = per_rank ? step : (down ? limit - step : limit + step);
      limits.push_back(limit);
    }
    policy.set_thresholds(policy.signal, values.data(), static_cast<int>(values.size()),
                          limits.data(), static_cast<int>(limits.size()));
  }

  /// Rows of the input's own numbers, of few different ones, or of any bits at all.
  void draw_logits(fuzz::bytes& from) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float special[] = {nan,   math::infinity, -math::infinity, 0.0f,
                             -0.0f, 20.0f,          87.0f,           -88.0f};
    batch.logits.assign(at(static_cast<int>(batch.num_tokens * batch.stride())),
                        from_float<Logit>(nan));
    for (std::int64_t t = 0; t < batch.num_tokens; ++t) {
      const int style = from.between(0, 5);
      inputs::sequence random(from.raw<std::uint16_t>());
      for (int e = 0; e < batch.num_experts; ++e) {
        float logit = 0.0f;
        if (style == 0) logit = static_cast<float>(from.raw<std::int8_t>()) / 64.0f;
        if (style == 1) logit = inputs::grid_logit(random, 96);
        if (style == 2) logit = static_cast<float>(random.below(4));
        if (style == 3)
          logit = random.chance(6) ? special[random.below(8)] : inputs::grid_logit(random, 64);
        if (style == 4) logit = inputs::from_bits(from.raw<std::uint32_t>());
        if (style == 5) logit = special[from.raw<std::uint8_t>() % 3];
        const auto stored = from_float<Logit>(logit);
        const float read = to_float(stored);
        on_grid = on_grid && style != 4 &&
                  (!(math::abs(read) < math::infinity) || read * 64.0f == std::rint(read * 64.0f));
        batch.logits[static_cast<std::size_t>(t * batch.stride() + e)] = stored;
      }
    }
  }

  routing_extras extras() const {
    routing_extras made;
    if (!bias.empty()) made.routing_bias = bias.data();
    if (!padding.empty()) made.padding_mask = padding.data();
    if (!k_min.empty()) made.k_min = k_min.data();
    if (!k_max.empty()) made.k_max = k_max.data();
    return made;
  }
};

template <class Id, class Weight>
struct written {
  std::vector<Id> ids;
  std::vector<Weight> weights;
  std::vector<std::int32_t> counts, chosen;
  std::vector<float> signal;
  routing_metrics metrics;

  template <class Logit>
  written(const drawn_call<Logit>& call, instruction_set set) {
    // Exactly as long as documented: a sanitizer sees one element more.
    ids.resize(at(static_cast<int>(call.batch.num_tokens * call.model.top_k)));
    weights.resize(ids.size());
    counts.resize(at(static_cast<int>(call.batch.num_tokens)));
    signal.resize(counts.size());
    chosen.resize(counts.size());
    routing_output<Id, Weight> output = {ids.data(), weights.data(), counts.data(), signal.data()};
    if (call.shadow) output.chosen_counts = chosen.data();
    const router made(call.model, call.policy, {call.fill, set});
    fuzz::require(made.validity().ok(), made.validity().message());
    const status routed = made.route(0, call.batch.view(), output, &metrics, call.extras());
    fuzz::require(routed.ok(), routed.message());
  }

  bool operator==(const written& other) const {
    return same(ids, other.ids) && same(weights, other.weights) && same(counts, other.counts) &&
           same(chosen, other.chosen) && same(signal, other.signal) &&
           std::memcmp(&metrics, &other.metrics, sizeof metrics) == 0;
  }

 private:
  template <class T>
  static bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
  }
};

template <class Id, class Weight, class Logit>
void require_same_bits(const drawn_call<Logit>& call) {
  const written<Id, Weight> expected(call, instruction_set::scalar);
  for (const instruction_set set :
       {instruction_set::generic, instruction_set::avx2, instruction_set::avx512})
    if (is_available(set))
      fuzz::require(written<Id, Weight>(call, set) == expected,
                    std::string("the scalar path's bits by ") + name_of(set));
  const gating& model = call.model;
  for (std::size_t t = 0; t < expected.counts.size(); ++t) {
    const int count = expected.counts[t];
    const bool padding = !call.padding.empty() && call.padding[t] != 0;
    fuzz::require(padding ? count == 0 : count >= 1 && count <= model.top_k, "k_t within 1..K0");
    for (int j = 0; j < count; ++j) {
      const auto id = static_cast<std::int64_t>(expected.ids[t * at(model.top_k) + at(j)]);
      fuzz::require(id >= 0 && id < model.num_experts, "ids within 0..E-1");
    }
  }
}

template <class Logit>
void run(fuzz::bytes& from) {
  const bool other_types = from.chance(4);
  const drawn_call<Logit> call(from);
  require_same_bits<std::int32_t, float>(call);
  if (other_types) require_same_bits<std::int64_t, float16>(call);
  if (!call.on_grid || call.shadow) return;
  checked::tally seen;
  checked::route_and_compare<std::int32_t>(call.model, call.policy, call.batch, call.extras(), seen,
                                           call.fill);
  fuzz::require(!::testing::Test::HasFailure(), "the oracle's answer");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  ::testing::InitGoogleTest(argc, *argv);
  ::testing::FLAGS_gtest_throw_on_failure = true;  // outside of a TEST
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::bytes from(data, size);
  switch (from.between(0, 3)) {
    case 0:
      run<bfloat16>(from);
      break;
    case 1:
      run<float16>(from);
      break;
    default:
      run<float>(from);
  }
  return 0;
}

// K policies: how many of its top K0 experts a token gets, and what that does to their weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What sets k of a token.
enum class k_rule : std::uint8_t {
  full,        ///< k = K0: the model's own routing, unchanged
  fixed,       ///< k = k_values[0] for every token: the control
  thresholds,  ///< the first of k_values whose threshold the signal meets, else the last
  distortion,  ///< k = argmin g * d(k) + lambda * k, d the predicted distortion of the output
};

/// How many values there are: 0 to one less.
constexpr int num_values(k_rule) noexcept {
  return static_cast<int>(k_rule::distortion) + 1;
}
/// The word of calibration files and the command line; "?" for no such value. Static text.
inline const char* to_string(k_rule rule) noexcept {
  switch (rule) {
    case k_rule::full:
      return "full";
    case k_rule::fixed:
      return "fixed";
    case k_rule::thresholds:
      return "thresholds";
    case k_rule::distortion:
      return "distortion";
  }
  return "?";
}

/// Predicted distortion of one layer. Non-owning; k runs over 1..K0-1 and d(K0) = 0.
///   ln d(k) = c_k . (1, ln(1 - r_k), ln psi_k, ln w_1, ln S_K0) + first_k[e_1] + next_k[e_(k+1)]
/// or, with a router head, x being what the router's matrix multiplies,
///   ln d(k) = c_k . (1, ln(1 - r_k)) + u_k . x
/// with w the renormalised top-K0 weights, r_k = w_1 + ... + w_k, a the mass_exponent,
/// psi_k = (r_k^-a - 1)^2 sum_{j<=k} w_j^2 + sum_{j>k} w_j^2, and S_K0 the scores' sum over the
/// top K0 (of softmax kinds: their share of all E). Logarithms are natural, of values of
/// 2^-100 or more: smaller ones count as that.
struct distortion_ref {
  static constexpr int num_features = 5;       ///< of c_k
  static constexpr int num_head_features = 2;  ///< of them beside a head
  const float* coefficients = nullptr;         ///< [K0 - 1, 5]
  const float* first_expert = nullptr;         ///< [K0 - 1, E], or null: zeros
  const float* next_expert = nullptr;          ///< [K0 - 1, E], or null: zeros
  float sensitivity = 1.0f;                    ///< g > 0 of the layer
  float lambda = 0.0f;                         ///< >= 0, price of one expert; 0 keeps K0
  /// u, [K0 - 1, hidden_size], or null: no head. The engine multiplies by it, best as K0 - 1 more
  /// rows of the router's matrix, and gives u . x as logits_view::head; routing only looks whether
  /// it is there. With it there are no tables, and the last three of c_k are 0.
  const float* head = nullptr;
  int hidden_size = 0;  ///< of x; >= 1 with a head
};

/// How the tokens that a policy was calibrated on look to one layer's router. Tokens outside are
/// counted in routing_metrics::out_of_domain and routed as all others.
struct domain_bounds {
  bool given = false;              ///< else no token is outside
  float signal_least = 0.0f;       ///< of the policy's signal, in its unit
  float signal_most = 0.0f;        ///< signal_least or more
  float first_share_least = 0.0f;  ///< of s_1 / (s_1 + ... + s_K0), 0..1
  float first_share_most = 1.0f;   ///< first_share_least..1
};

/// The K policy of one layer. Plain data; `validate` checks it against a gating.
struct [[nodiscard]] k_policy {
  /// Stands for the model's own; see `mass_exponent`.
  static constexpr float mass_exponent_of_model = -1.0f;

  k_rule rule = k_rule::full;  ///< what sets k
  signal_kind signal =
      signal_kind::softmax_entropy;       ///< compared by thresholds, else only reported
  std::uint8_t num_k_values = 0;          ///< thresholds: 1..32; fixed: 1
  std::uint8_t k_values[max_top_k] = {};  ///< ascending, within 1..K0
  /// One fewer than k_values. Entropies and score_ratio: k_i is enough when signal < threshold_i
  /// (published: H < t); topk_mass and margin: when signal >= threshold_i. Entropy thresholds
  /// ascend strictly, margin's descend strictly; topk_mass and score_ratio are tried at each rank
  /// k_i, and their thresholds, in [0, 1], may be equal or in any order.
  float thresholds[max_top_k] = {};
  std::uint8_t k_min = 1;          ///< 1..K0; both bounds apply to every rule
  std::uint8_t k_max = max_top_k;  ///< k_min or more; above K0 means K0
  /// a in [0, 1]: at k < K0 the kept weights are multiplied by r_k^-a. The default -1 means 1 for
  /// renormalising models (their weights sum to what they did) and 0 for the others.
  float mass_exponent = mass_exponent_of_model;
  distortion_ref distortion;  ///< of k_rule::distortion
  /// Super experts: the few of a model whose loss breaks it (arXiv 2507.23279). No token drops one
  /// that is among its top K0: its k reaches that rank, whatever the rule and any k_max say.
  std::uint16_t super_experts[max_super_experts] = {};  ///< 0..E - 1, each once
  std::uint8_t num_super_experts = 0;                   ///< how many of them: 0..8
  domain_bounds domain;                                 ///< that it was calibrated on

  /// Arguments of the functions below that the fields above cannot hold, kept for `validate` to
  /// refuse by name. All zero in a policy whose fields are filled in directly.
  struct given_arguments {
    int top_k = 0;           ///< of top_p and score_ratio: the gating's own is expected
    int num_k_values = 0;    ///< set, as the next, where they do not differ by one
    int num_thresholds = 0;  ///< see num_k_values
    int k = 0;               ///< the first k outside 1..32
  } given;                   ///< for `validate` alone

  /// k = K0: the model's own routing, to the bit.
  static k_policy full() noexcept { return {}; }

  /// k experts for every token, 1..K0: the control.
  static k_policy fixed(int k) noexcept {
    k_policy policy;
    policy.rule = k_rule::fixed;
    policy.num_k_values = 1;
    policy.set_k_value(0, k);
    return policy;
  }

  /// K = the first k whose threshold is above the signal, else the last. {1, 2, 4}, {0.6, 1.2} is
  /// the published example. Lists longer than 32 are refused by `validate`.
  static k_policy entropy(std::initializer_list<int> k_values,
                          std::initializer_list<float> thresholds_nats) noexcept {
    return with_thresholds(signal_kind::softmax_entropy, k_values, thresholds_nats);
  }

  /// K = the first of `k_values`, ascending, whose threshold the signal meets, else the last.
  /// Thresholds are in the signal's unit, one fewer; lists that do not fit are refused by
  /// `validate`.
  static k_policy with_thresholds(signal_kind signal, std::initializer_list<int> k_values,
                                  std::initializer_list<float> thresholds) noexcept {
    k_policy policy;
    policy.set_thresholds(signal, k_values.begin(), static_cast<int>(k_values.size()),
                          thresholds.begin(), static_cast<int>(thresholds.size()));
    return policy;
  }

  /// Fills `k_values` and `thresholds`; a wrong count or value is left for `validate` to refuse.
  void set_thresholds(signal_kind kind, const int* values, int num_values, const float* limits,
                      int num_limits) noexcept {
    rule = k_rule::thresholds;
    signal = kind;
    const bool counts_fit =
        num_values >= 1 && num_values <= max_top_k && num_limits == num_values - 1;
    num_k_values = static_cast<std::uint8_t>(counts_fit ? num_values : 0);
    given = {};
    if (!counts_fit) {
      given.num_k_values = num_values;
      given.num_thresholds = num_limits;
    }
    for (int i = 0; i < num_k_values; ++i) set_k_value(i, values[i]);
    for (int i = 0; i + 1 < num_k_values; ++i) thresholds[i] = limits[i];
  }

  /// Least k whose renormalised top-K0 mass reaches `mass`, in 0..1 (top-p; arXiv 2403.07652).
  /// `top_k` is the gating's own, here and in `score_ratio`: to keep at most k, set `k_max`.
  static k_policy top_p(float mass, int top_k) noexcept {
    return every_rank(signal_kind::topk_mass, mass, top_k);
  }

  /// Keeps experts while s_j >= ratio * s_1, the ratio in 0..1 (llama.cpp forks' `-ser`; NAEE,
  /// arXiv 2402.14800).
  static k_policy score_ratio(float ratio, int top_k) noexcept {
    return every_rank(signal_kind::score_ratio, ratio, top_k);
  }

  /// argmin over k of g d(k) + lambda k; reads the tables of `model` at every call.
  static k_policy min_distortion(const distortion_ref& model) noexcept {
    k_policy policy;
    policy.rule = k_rule::distortion;
    policy.signal = signal_kind::topk_entropy;
    policy.distortion = model;
    return policy;
  }

 private:
  void set_k_value(int i, int k) noexcept {
    const bool fits = k >= 1 && k <= max_top_k;
    k_values[i] = static_cast<std::uint8_t>(fits ? k : 0);
    if (!fits && given.k == 0) given.k = k;
  }

  static k_policy every_rank(signal_kind kind, float threshold, int top_k) noexcept {
    k_policy policy;
    policy.rule = k_rule::thresholds;
    policy.signal = kind;
    policy.given.top_k = top_k;
    policy.num_k_values = static_cast<std::uint8_t>(top_k >= 1 && top_k <= max_top_k ? top_k : 0);
    for (int i = 0; i < policy.num_k_values; ++i) {
      policy.k_values[i] = static_cast<std::uint8_t>(i + 1);
      policy.thresholds[i] = threshold;
    }
    return policy;
  }
};

namespace detail {

inline status validate_distortion(const distortion_ref& model, int top_k) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (top_k > 1 && model.coefficients == nullptr)
    return status::error(invalid, "`distortion.coefficients` is null, expected [%d, %d] floats",
                         top_k - 1, distortion_ref::num_features);
  if (!(model.sensitivity > 0.0f && model.sensitivity < 1e30f))
    return status::error(invalid, "`distortion.sensitivity` is %g, expected above 0, below 1e30",
                         static_cast<double>(model.sensitivity));
  if (!(model.lambda >= 0.0f && model.lambda < 1e30f))
    return status::error(invalid, "`distortion.lambda` is %g, expected 0 or more, below 1e30",
                         static_cast<double>(model.lambda));
  if (model.head == nullptr) return {};
  if (model.hidden_size < 1)
    return status::error(invalid, "`distortion.hidden_size` is %d, expected 1 or more with a head",
                         model.hidden_size);
  if (model.first_expert != nullptr || model.next_expert != nullptr)
    return status::error(invalid,
                         "`distortion.%s` is given beside distortion.head, expected one of them",
                         model.first_expert != nullptr ? "first_expert" : "next_expert");
  for (int i = 0; i < (top_k - 1) * distortion_ref::num_features; ++i) {
    const int feature = i % distortion_ref::num_features;
    if (feature >= distortion_ref::num_head_features && model.coefficients[i] != 0.0f)
      return status::error(
          invalid, "`distortion.coefficients[%d, %d]` is %g, expected 0 with a head",
          i / distortion_ref::num_features, feature, static_cast<double>(model.coefficients[i]));
  }
  return {};
}

inline status validate_thresholds(const k_policy& policy, int top_k) noexcept {
  const auto invalid = status_code::invalid_argument;
  const k_policy::given_arguments& given = policy.given;
  if (given.num_k_values != 0 || given.num_thresholds != 0)
    return status::error(
        invalid,
        "k_values has %d values and thresholds %d, expected 1..%d k_values and one "
        "threshold fewer",
        given.num_k_values, given.num_thresholds, max_top_k);
  if (given.top_k != 0 && given.top_k != top_k)
    return status::error(
        invalid,
        "`top_k` is %d in the %s policy, expected the gating's own, %d (to keep at "
        "most %d experts, set k_max)",
        given.top_k, policy.signal == signal_kind::topk_mass ? "top_p" : "score_ratio", top_k,
        given.top_k < top_k ? given.top_k : top_k);
  if (policy.num_k_values < 1 || policy.num_k_values > max_top_k)
    return status::error(invalid, "`num_k_values` is %d, expected 1..%d for thresholds",
                         policy.num_k_values, max_top_k);
  if (policy.signal == signal_kind::none)
    return status::error(invalid, "`signal` is none, expected one that thresholds can compare");
  for (int i = 0; i < policy.num_k_values; ++i) {
    const int k = policy.k_values[i] != 0 ? policy.k_values[i] : given.k;
    const int least = i == 0 ? 1 : policy.k_values[i - 1] + 1;
    if (least > top_k)
      return status::error(invalid, "`k_values[%d]` is %d, expected no value after top_k = %d", i,
                           k, top_k);
    if (k < least || k > top_k)
      return status::error(invalid,
                           "`k_values[%d]` is %d, expected %d..%d (ascending, at most top_k)", i, k,
                           least, top_k);
  }
  // The threshold of top_p and score_ratio is checked even where there is no rank to try.
  const int num_thresholds = policy.num_k_values - 1;
  for (int i = 0; i < (given.top_k != 0 ? num_thresholds + 1 : num_thresholds); ++i) {
    const float t = policy.thresholds[i];
    if (is_per_rank(policy.signal)) {
      if (!(t >= 0.0f && t <= 1.0f))
        return status::error(invalid, "`thresholds[%d]` is %g, expected 0..1", i,
                             static_cast<double>(t));
      continue;
    }
    if (!(math::abs(t) < 1e30f))
      return status::error(invalid, "`thresholds[%d]` is %g, expected more than -1e30, below 1e30",
                           i, static_cast<double>(t));
    if (i > 0) {
      const bool down = high_is_sure(policy.signal);
      const float before = policy.thresholds[i - 1];
      if (down ? !(t < before) : !(t > before))
        return status::error(invalid, "`thresholds[%d]` is %g after %g, expected strictly %s", i,
                             static_cast<double>(t), static_cast<double>(before),
                             down ? "descending" : "ascending");
    }
  }
  return {};
}

inline status validate_super_experts(const k_policy& policy, int num_experts) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (policy.num_super_experts > max_super_experts)
    return status::error(invalid, "`num_super_experts` is %d, expected 0..%d",
                         policy.num_super_experts, max_super_experts);
  for (int i = 0; i < policy.num_super_experts; ++i) {
    const int id = policy.super_experts[i];
    if (id >= num_experts)
      return status::error(invalid, "`super_experts[%d]` is %d, expected 0..%d (num_experts - 1)",
                           i, id, num_experts - 1);
    for (int before = 0; before < i; ++before)
      if (policy.super_experts[before] == id)
        return status::error(invalid, "`super_experts[%d]` is %d, expected another than [%d]", i,
                             id, before);
  }
  return {};
}

inline status validate(const domain_bounds& domain) noexcept {
  const auto invalid = status_code::invalid_argument;
  const auto number = [](float value) { return static_cast<double>(value); };
  if (!domain.given) return {};
  if (!(math::abs(domain.signal_least) < 1e30f))
    return status::error(invalid,
                         "`domain.signal_least` is %g, expected more than -1e30, below 1e30",
                         number(domain.signal_least));
  if (!(domain.signal_most >= domain.signal_least && domain.signal_most < 1e30f))
    return status::error(
        invalid, "`domain.signal_most` is %g, expected signal_least = %g or more, below 1e30",
        number(domain.signal_most), number(domain.signal_least));
  if (!(domain.first_share_least >= 0.0f && domain.first_share_least <= 1.0f))
    return status::error(invalid, "`domain.first_share_least` is %g, expected 0..1",
                         number(domain.first_share_least));
  if (!(domain.first_share_most >= domain.first_share_least && domain.first_share_most <= 1.0f))
    return status::error(invalid,
                         "`domain.first_share_most` is %g, expected first_share_least = %g to 1",
                         number(domain.first_share_most), number(domain.first_share_least));
  return {};
}

}  // namespace detail

/// Refuses a policy that does not fit the gating; the message names the field and the range.
inline status validate(const k_policy& policy, const gating& g) noexcept {
  const auto invalid = status_code::invalid_argument;
  if (policy.k_min < 1 || policy.k_min > g.top_k)
    return status::error(invalid, "`k_min` is %d, expected 1..top_k = %d", policy.k_min, g.top_k);
  if (policy.k_max < policy.k_min)
    return status::error(invalid, "`k_max` is %d, expected k_min = %d or more", policy.k_max,
                         policy.k_min);
  const float a = policy.mass_exponent;
  if (a != k_policy::mass_exponent_of_model && !(a >= 0.0f && a <= 1.0f))
    return status::error(invalid, "`mass_exponent` is %g, expected 0..1, or -1 for the model's own",
                         static_cast<double>(a));
  if (static_cast<int>(policy.signal) >= num_values(policy.signal))
    return status::error(invalid, "`signal` is %d, expected a signal_kind, 0..%d",
                         static_cast<int>(policy.signal), num_values(policy.signal) - 1);
  const status super_experts = detail::validate_super_experts(policy, g.num_experts);
  if (!super_experts.ok()) return super_experts;
  const status domain = detail::validate(policy.domain);
  if (!domain.ok()) return domain;
  switch (policy.rule) {
    case k_rule::full:
      return {};
    case k_rule::fixed:
      if (policy.num_k_values != 1)
        return status::error(invalid, "`num_k_values` is %d, expected 1 for a fixed k",
                             policy.num_k_values);
      if (policy.k_values[0] < 1 || policy.k_values[0] > g.top_k)
        return status::error(invalid, "fixed `k` is %d, expected 1..top_k = %d",
                             policy.k_values[0] != 0 ? policy.k_values[0] : policy.given.k,
                             g.top_k);
      return {};
    case k_rule::thresholds:
      return detail::validate_thresholds(policy, g.top_k);
    case k_rule::distortion:
      return detail::validate_distortion(policy.distortion, g.top_k);
  }
  return status::error(invalid, "`rule` is %d, expected a k_rule, 0..%d",
                       static_cast<int>(policy.rule), num_values(policy.rule) - 1);
}

namespace detail {

/// Brought within the range that `validate` accepts for lambda and thresholds.
inline float to_policy_float(double value) noexcept {
  constexpr double most = 9e29;
  return static_cast<float>(value > most ? most : (value < -most ? -most : value));
}

inline float scaled_threshold(signal_kind signal, float threshold, double by) noexcept {
  const auto t = static_cast<double>(threshold);
  if (high_is_sure(signal))
    return t > 0.0 && t < 1.0 ? static_cast<float>(t / std::fma(by, 1.0 - t, t))
           : by == by         ? threshold
                              : static_cast<float>(by);
  if (!is_per_rank(signal)) return to_policy_float(t * std::sqrt(std::sqrt(by)));
  return static_cast<float>(t * by > 1.0 ? 1.0 : t * by);
}

}  // namespace detail

/// The policy moved by a factor, finite and above 0; larger factors save more. Lambda and score
/// ratios are multiplied by it (ratios stay within 1), entropy thresholds by its fourth root, as
/// they are the more sensitive; a mass or margin p becomes p / (p + by (1 - p)). A policy that
/// `validate` accepts stays acceptable: thresholds that would meet stay one ULP apart. A factor out
/// of range gives NaNs, which `validate` refuses.
inline k_policy scaled(k_policy policy, double by) noexcept {
  if (!(by > 0.0 && by <= (std::numeric_limits<double>::max)()))
    by = std::numeric_limits<double>::quiet_NaN();
  switch (policy.rule) {
    case k_rule::full:
    case k_rule::fixed:
      return policy;
    case k_rule::distortion:
      policy.distortion.lambda =
          detail::to_policy_float(static_cast<double>(policy.distortion.lambda) * by);
      return policy;
    case k_rule::thresholds:
      break;
  }
  const bool per_rank = detail::is_per_rank(policy.signal);
  const bool down = detail::high_is_sure(policy.signal);
  float t_before = 0.0f;
  for (int i = 0; i + 1 < policy.num_k_values && i < max_top_k; ++i) {
    const float t = policy.thresholds[i];
    float& moved = policy.thresholds[i];
    moved = detail::scaled_threshold(policy.signal, t, by);
    if (i > 0 && !per_rank) {
      const float last = policy.thresholds[i - 1];
      if (down && t < t_before && moved >= last) moved = std::nextafter(last, -math::infinity);
      if (!down && t > t_before && moved <= last) moved = std::nextafter(last, math::infinity);
    }
    t_before = t;
  }
  return policy;
}

ADAPTIVE_K_NAMESPACE_END

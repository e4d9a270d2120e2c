// An independent routing oracle in double precision: slow, plain, written from the documentation
// of the public types alone. The library's answers are compared with it, never the reverse.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"

namespace oracle {

using adaptive_k::gating;
using adaptive_k::gating_kind;
using adaptive_k::group_score;
using adaptive_k::k_policy;
using adaptive_k::k_rule;
using adaptive_k::signal_kind;

/// Decisions closer than this to their opposite are not the oracle's to make: a float path may
/// round to the other side. Far above float rounding, far below what a test should forgive.
struct closeness {
  double rank = 4e-7;    ///< selection values that are sums with a bias or of a group; absolute
  double signal = 2e-6;  ///< signal against threshold; relative to the larger of 1 and the signal
};

struct token {
  std::vector<double> logits;   ///< [E], as the router reads them
  const float* bias = nullptr;  ///< [E] or null
  std::vector<double> head;     ///< [K0 - 1], as the router reads it; empty: none
  int k_min = 0;                ///< per-token limits; 0: none
  int k_max = 0;
};

struct answer {
  std::vector<int> experts;     ///< [K0], best first
  std::vector<double> scores;   ///< [K0], of those experts
  std::vector<double> shares;   ///< [K0], the scores normalised to sum 1
  std::vector<double> weights;  ///< [k]
  int k = 0;
  double signal = 0.0;
  double signal_slack = 0.0;  ///< what the cancellation in an entropy may cost
  bool raised = false;        ///< k, by a super expert
  bool has_nonfinite = false;
  bool close_rank = false;  ///< another order is within `closeness::rank`
  bool close_k = false;     ///< another k is within rounding
};

inline constexpr double infinity = std::numeric_limits<double>::infinity();

inline std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

/// Documented: e^x is 0 below -86.99.
inline double exp_to_zero(double x) {
  return x < -86.99 ? 0.0 : std::exp(x);
}

inline double sum(const std::vector<double>& values) {
  long double total = 0.0L;
  for (double value : values) total += value;
  return static_cast<double>(total);
}

/// Softmax in which infinite logits share everything equally, and NaN counts as -inf.
inline std::vector<double> softmax(const std::vector<double>& logits) {
  double highest = -infinity;
  for (double x : logits)
    if (x > highest) highest = x;
  std::vector<double> shares;
  for (double x : logits) {
    const bool equal = x == highest;
    shares.push_back(std::isnan(x) ? 0.0 : (equal ? 1.0 : exp_to_zero(x - highest)));
  }
  const double total = sum(shares);
  for (double& share : shares) share /= total;
  return shares;
}

inline double sigmoid(double x) {
  return std::isnan(x) || x < -86.99 ? 0.0 : 1.0 / (1.0 + std::exp(-x));
}

inline double sqrt_softplus(double x) {
  if (std::isnan(x) || x < -86.99) return 0.0;
  x = std::min(x, 1e30);  // as gating_kind says: shares of an infinite score would be NaN
  const double softplus = x > 0.0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
  return std::sqrt(softplus);
}

/// The scores of all E experts; for top_k_softmax those of the softmax over all.
inline std::vector<double> all_scores(gating_kind kind, const std::vector<double>& logits) {
  if (kind != gating_kind::sigmoid && kind != gating_kind::sqrt_softplus) return softmax(logits);
  std::vector<double> scores;
  for (double x : logits)
    scores.push_back(kind == gating_kind::sigmoid ? sigmoid(x) : sqrt_softplus(x));
  return scores;
}

/// -sum p ln p of values normalised to sum 1.
inline double entropy(const std::vector<double>& values) {
  const double total = sum(values);
  long double result = 0.0L;
  for (double value : values)
    if (value > 0.0) result -= value / total * std::log(value / total);
  return static_cast<double>(result);
}

/// Indices by descending value, NaN last, equal values by lower index.
inline std::vector<int> descending(const std::vector<double>& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    const double x = values[at(a)], y = values[at(b)];
    if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) && std::isnan(y);
    return x > y;
  });
  return order;
}

/// Whether one of the first `count` of the order differs from one behind it, but hardly.
inline bool hardly_ordered(const std::vector<double>& values, const std::vector<int>& order,
                           int count, double close) {
  for (int i = 0; i < count; ++i) {
    const double value = values[at(order[at(i)])];
    for (std::size_t j = at(i + 1); j < order.size(); ++j) {
      const double gap = std::abs(value - values[at(order[j])]);
      if (!(gap < close * std::max(1.0, std::abs(value)))) break;
      if (gap != 0.0) return true;
    }
  }
  return false;
}

/// The top K0 experts, best first, by the values that select: logits, or score + bias.
inline void select(const gating& g, const token& input, const std::vector<double>& scores,
                   const closeness& close, answer& result) {
  const bool summed = g.n_group > 1 && g.group_rank == group_score::top2_sum;
  const bool by_score = g.selection_bias || summed;
  std::vector<double> value = input.logits;
  if (by_score)
    for (int e = 0; e < g.num_experts; ++e) {
      if (std::isnan(value[at(e)])) continue;
      value[at(e)] = scores[at(e)];
      if (g.selection_bias) value[at(e)] += static_cast<double>(input.bias[e]);
    }
  if (g.n_group > 1) {
    const int size = g.num_experts / g.n_group;
    std::vector<double> group_value;
    for (int group = 0; group < g.n_group; ++group) {
      std::vector<double> members(value.begin() + group * size, value.begin() + (group + 1) * size);
      const std::vector<int> best = descending(members);
      double total = members[at(best[0])];
      if (summed && size > 1) total += members[at(best[1])];
      group_value.push_back(std::isnan(total) ? -infinity : total);  // a NaN counts as -inf
    }
    const std::vector<int> order = descending(group_value);
    if (by_score && g.topk_group < g.n_group) {
      // Which groups are chosen matters, their order does not.
      const double gap =
          group_value[at(order[at(g.topk_group - 1)])] - group_value[at(order[at(g.topk_group)])];
      const double size_of = std::max(1.0, std::abs(group_value[at(order[at(g.topk_group)])]));
      if (std::abs(gap) < 2.0 * close.rank * size_of && (gap != 0.0 || summed))
        result.close_rank = true;
    }
    std::vector<bool> chosen(at(g.n_group), false);
    for (int i = 0; i < g.topk_group; ++i) chosen[at(order[at(i)])] = true;
    std::vector<int> ranked;
    for (int e : descending(value))
      if (chosen[at(e / size)]) ranked.push_back(e);
    result.experts = ranked;
  } else {
    result.experts = descending(value);
  }
  if (by_score && hardly_ordered(value, result.experts, g.top_k, close.rank))
    result.close_rank = true;
  result.experts.resize(at(g.top_k));
}

/// Sparsemixer: each of at most two experts weighs by a softmax over the logits that lie close
/// to its own, the second without the first expert.
inline std::vector<double> sparsemixer_scores(const gating& g, const std::vector<double>& logits,
                                              const std::vector<int>& experts, bool& close_mask) {
  const double tolerance = 2.0 * static_cast<double>(g.jitter_epsilon);
  std::vector<double> scores;
  for (std::size_t rank = 0; rank < experts.size(); ++rank) {
    const double highest = logits[at(experts[rank])];
    double total = 0.0;
    for (int e = 0; e < g.num_experts; ++e) {
      const double x = logits[at(e)];
      if (std::isnan(x) || (rank == 1 && e == experts[0])) continue;
      const double factor = std::max(std::abs(x), highest);
      const double distance = (highest - x) / factor;
      if (std::abs(distance - tolerance) < 1e-6 && x != highest) close_mask = true;
      if (!(distance > tolerance)) total += x == highest ? 1.0 : exp_to_zero(x - highest);
    }
    scores.push_back(1.0 / total);
  }
  return scores;
}

inline double mass_exponent(const gating& g, const k_policy& policy) {
  if (policy.mass_exponent != k_policy::mass_exponent_of_model)
    return static_cast<double>(policy.mass_exponent);
  return g.renormalize || g.kind == gating_kind::top_k_softmax ? 1.0 : 0.0;
}

/// r_1..r_K0 of shares in rank order.
inline std::vector<double> running_mass(const std::vector<double>& shares) {
  std::vector<double> mass;
  long double total = 0.0L;
  for (double share : shares) mass.push_back(static_cast<double>(total += share));
  return mass;
}

inline int threshold_k(const k_policy& policy, const answer& result, const closeness& close,
                       bool& close_k) {
  const std::vector<double> mass = running_mass(result.shares);
  for (int i = 0; i + 1 < policy.num_k_values; ++i) {
    const int k = policy.k_values[i];
    const double t = static_cast<double>(policy.thresholds[i]);
    double low = result.signal, high = t;  // met when low < high
    double margin = close.signal * std::max(1.0, std::abs(result.signal)) + result.signal_slack;
    if (policy.signal == signal_kind::topk_mass) {
      low = t;
      high = mass[at(k - 1)];
    } else if (policy.signal == signal_kind::score_ratio) {
      low = result.scores[at(k)];
      high = t * result.scores[0];
      margin = close.signal * std::max(low, high);
    } else if (policy.signal == signal_kind::margin) {
      low = t;
      high = result.signal;
    }
    if (std::abs(low - high) < margin) close_k = true;
    const bool reaches =
        policy.signal == signal_kind::topk_mass || policy.signal == signal_kind::margin;
    if (reaches ? low <= high : low < high) return k;
  }
  return policy.k_values[policy.num_k_values - 1];
}

inline double floored_log(double value) {
  return std::log(std::max(value, std::ldexp(1.0, -100)));
}

/// argmin over k in low..high of g d(k) + lambda k. `topk_score` is S_K0.
inline int distortion_k(const gating& g, const k_policy& policy, const answer& result,
                        const std::vector<double>& head_columns, double topk_score, int low,
                        int high, bool& close_k) {
  const auto& model = policy.distortion;
  if (model.head != nullptr)  // documented: with a column that is not finite the most experts
    for (const double column : head_columns)
      if (!std::isfinite(column)) return high;
  const double a = mass_exponent(g, policy);
  const std::vector<double> mass = running_mass(result.shares);
  std::vector<double> cost, slack;
  for (int k = 1; k <= g.top_k; ++k) {
    double distortion = 0.0, relative = 0.0;
    if (k < g.top_k) {
      const double least = std::ldexp(1.0, -100);  // what shares count as at least
      const double r = std::max(mass[at(k - 1)], least);
      double head = 0.0, tail = 0.0, dropped = 0.0;
      for (int j = 0; j < g.top_k; ++j) {
        const double w = result.shares[at(j)];
        (j < k ? head : tail) += w * w;
        if (j >= k) dropped += w;
      }
      const double stretch = std::pow(r, -a) - 1.0;
      const double psi = stretch * stretch * head + tail;
      const float* c = model.coefficients + (k - 1) * 5;
      double exponent = static_cast<double>(c[0]) +
                        static_cast<double>(c[1]) * floored_log(dropped) +
                        static_cast<double>(c[2]) * floored_log(psi) +
                        static_cast<double>(c[3]) * floored_log(result.shares[0]) +
                        static_cast<double>(c[4]) * floored_log(topk_score);
      if (model.head != nullptr) exponent += head_columns[at(k - 1)];
      const int row = (k - 1) * g.num_experts;
      if (model.first_expert != nullptr)
        exponent += static_cast<double>(model.first_expert[row + result.experts[0]]);
      if (model.next_expert != nullptr)
        exponent += static_cast<double>(model.next_expert[row + result.experts[at(k)]]);
      distortion = std::exp(exponent);
      // Float rounding: of r, where little is dropped, and of psi, where it cancels.
      const double rounding = 4e-7;
      relative = 2e-5 + std::abs(static_cast<double>(c[1])) * rounding / std::max(dropped, least) +
                 std::abs(static_cast<double>(c[2])) * 2.0 * std::abs(stretch) * rounding * head /
                     std::max(psi, least);
    }
    const double sensitivity = static_cast<double>(model.sensitivity);
    cost.push_back(sensitivity * distortion + static_cast<double>(model.lambda) * k);
    slack.push_back(sensitivity * distortion * relative + 1e-7 * cost.back());
  }
  int best = low;
  for (int k = low; k <= high; ++k)
    if (cost[at(k - 1)] < cost[at(best - 1)]) best = k;
  for (int k = low; k <= high; ++k)
    if (k != best && cost[at(k - 1)] - cost[at(best - 1)] < slack[at(k - 1)] + slack[at(best - 1)])
      close_k = true;
  return best;
}

inline double signal_of(signal_kind kind, const gating& g, const std::vector<double>& scores_of_all,
                        const answer& result) {
  switch (kind) {
    case signal_kind::none:
      return 0.0;
    case signal_kind::softmax_entropy:
      return entropy(scores_of_all);
    case signal_kind::normalized_entropy:
      return g.num_experts == 1 ? 0.0 : entropy(scores_of_all) / std::log(g.num_experts);
    case signal_kind::topk_entropy:
      return entropy(result.shares);
    case signal_kind::topk_mass:
      return result.shares[0];
    case signal_kind::score_ratio:
      // By shares, which are equal where all scores are 0.
      return result.shares[0] > 0.0
                 ? std::min((g.top_k > 1 ? result.shares[1] : 0.0) / result.shares[0], 1024.0)
                 : 1024.0;
    case signal_kind::margin:
      return result.shares[0] - (g.top_k > 1 ? result.shares[1] : 0.0);
  }
  return 0.0;
}

inline int clamp(int k, int low, int high) {
  return std::min(std::max(k, low), high);
}

inline answer route(const gating& g, const k_policy& policy, token input,
                    const closeness& close = {}) {
  answer result;
  int finite = 0;
  for (double x : input.logits) {
    finite += std::isfinite(x) ? 1 : 0;
    result.has_nonfinite = result.has_nonfinite || !std::isfinite(x);
  }
  gating model = g;
  if (finite == 0) {  // as if all logits were 0, without bias and groups
    std::fill(input.logits.begin(), input.logits.end(), 0.0);
    model.selection_bias = false;
    model.n_group = model.topk_group = 1;
  }

  const std::vector<double> scores = all_scores(model.kind, input.logits);
  select(model, input, scores, close, result);
  double selected = 0.0;  // the chosen scores' sum, not yet normalised
  if (model.kind == gating_kind::sparsemixer) {
    result.scores = sparsemixer_scores(model, input.logits, result.experts, result.close_rank);
    selected = sum(result.scores);
  } else {
    for (int e : result.experts) result.scores.push_back(scores[at(e)]);
    selected = sum(result.scores);
    if (model.kind == gating_kind::top_k_softmax)  // over the selected: the same, renormalised
      for (double& score : result.scores) score = selected > 0.0 ? score / selected : 1.0 / g.top_k;
  }
  const double total = sum(result.scores);
  for (double score : result.scores)
    result.shares.push_back(total > 0.0 ? score / total : 1.0 / g.top_k);

  result.signal = signal_of(policy.signal, g, scores, result);
  // An entropy is a logarithm of a sum less a mean logarithm: both are large where scores are
  // small.
  const double entropy_total = policy.signal == signal_kind::topk_entropy ? selected : sum(scores);
  if (policy.signal == signal_kind::softmax_entropy ||
      policy.signal == signal_kind::normalized_entropy ||
      policy.signal == signal_kind::topk_entropy)
    result.signal_slack = 3e-7 * std::abs(floored_log(entropy_total));

  // The policy's limits, pushed into the token's where they do not overlap.
  const int least = input.k_min != 0 ? input.k_min : 1;
  const int most = input.k_max != 0 ? input.k_max : g.top_k;
  const int low = clamp(policy.k_min, least, most);
  const int high = clamp(std::min<int>(policy.k_max, g.top_k), least, most);

  int k = g.top_k;
  if (policy.rule == k_rule::fixed) k = policy.k_values[0];
  if (policy.rule == k_rule::thresholds) k = threshold_k(policy, result, close, result.close_k);
  if (policy.rule == k_rule::distortion) {
    double topk_score = total;
    if (model.kind == gating_kind::top_k_softmax) {  // their share of the softmax over all E
      topk_score = 0.0;
      for (int e : result.experts) topk_score += scores[at(e)];
    }
    k = distortion_k(g, policy, result, input.head, topk_score, low, high, result.close_k);
    if (policy.distortion.head != nullptr)
      for (const double column : input.head)
        result.has_nonfinite = result.has_nonfinite || !std::isfinite(column);
  }
  k = clamp(k, low, high);
  for (int j = 0; j < g.top_k; ++j)  // no super expert is dropped, whatever the limits
    for (int i = 0; i < policy.num_super_experts; ++i)
      if (result.experts[at(j)] == policy.super_experts[i] && j + 1 > k) {
        k = j + 1;
        result.raised = true;
      }
  result.k = k;

  const bool renormalize = g.renormalize || g.kind == gating_kind::top_k_softmax;
  double factor = static_cast<double>(g.routed_scaling_factor);
  if (k < g.top_k)
    factor *= std::pow(std::max(running_mass(result.shares)[at(k - 1)], std::ldexp(1.0, -100)),
                       -mass_exponent(g, policy));
  for (int j = 0; j < k; ++j)
    result.weights.push_back(factor * (renormalize ? result.shares[at(j)] : result.scores[at(j)]));
  return result;
}

}  // namespace oracle

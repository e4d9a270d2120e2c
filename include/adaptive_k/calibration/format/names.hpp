// The words that calibration files and the command line use for the library's enumerations.
#pragma once

#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template <class Enum>
struct named {
  Enum value;
  const char* name;
};

inline constexpr named<gating_kind> gating_kind_names[] = {
    {gating_kind::softmax, "softmax"},
    {gating_kind::sigmoid, "sigmoid"},
    {gating_kind::top_k_softmax, "top_k_softmax"},
    {gating_kind::sqrt_softplus, "sqrt_softplus"},
    {gating_kind::sparsemixer, "sparsemixer"},
};

inline constexpr named<group_score> group_score_names[] = {
    {group_score::top2_sum, "top2_sum"},
    {group_score::maximum, "maximum"},
};

inline constexpr named<signal_kind> signal_kind_names[] = {
    {signal_kind::none, "none"},
    {signal_kind::softmax_entropy, "softmax_entropy"},
    {signal_kind::normalized_entropy, "normalized_entropy"},
    {signal_kind::topk_entropy, "topk_entropy"},
    {signal_kind::topk_mass, "topk_mass"},
    {signal_kind::score_ratio, "score_ratio"},
    {signal_kind::margin, "margin"},
};

inline constexpr named<k_rule> k_rule_names[] = {
    {k_rule::full, "full"},
    {k_rule::fixed, "fixed"},
    {k_rule::thresholds, "thresholds"},
    {k_rule::distortion, "distortion"},
};

template <class Enum, std::size_t N>
const char* name_in(const named<Enum> (&names)[N], Enum value) noexcept {
  for (const auto& entry : names)
    if (entry.value == value) return entry.name;
  return "?";
}

/// Null when no entry has that name.
template <class Enum, std::size_t N>
const named<Enum>* find_name(const named<Enum> (&names)[N], std::string_view name) noexcept {
  for (const auto& entry : names)
    if (name == entry.name) return &entry;
  return nullptr;
}

template <class Enum, std::size_t N>
std::string all_names(const named<Enum> (&names)[N]) {
  std::string list;
  for (const auto& entry : names) list += (list.empty() ? "" : ", ") + std::string(entry.name);
  return list;
}

}  // namespace detail

/// As calibration files spell it. Static text.
inline const char* to_string(gating_kind kind) noexcept {
  return detail::name_in(detail::gating_kind_names, kind);
}
/// As calibration files spell it. Static text.
inline const char* to_string(group_score score) noexcept {
  return detail::name_in(detail::group_score_names, score);
}
/// As calibration files spell it. Static text.
inline const char* to_string(signal_kind kind) noexcept {
  return detail::name_in(detail::signal_kind_names, kind);
}
/// As calibration files spell it. Static text.
inline const char* to_string(k_rule rule) noexcept {
  return detail::name_in(detail::k_rule_names, rule);
}

/// "nats", or "" for signals that are plain ratios.
inline const char* unit_of(signal_kind kind) noexcept {
  return kind == signal_kind::softmax_entropy || kind == signal_kind::topk_entropy ? "nats" : "";
}

ADAPTIVE_K_NAMESPACE_END

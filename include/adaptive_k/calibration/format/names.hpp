// Reads the names of the library's enumerations, which to_string in core/ writes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// f(value) for each value of an enumeration, in order.
template <class Enum, class F>
void for_each_value(F f) {
  for (int i = 0; i < num_values(Enum{}); ++i) f(static_cast<Enum>(i));
}

template <class Enum>
std::optional<Enum> find_name(std::string_view name) {
  std::optional<Enum> found;
  for_each_value<Enum>([&](Enum value) {
    if (name == to_string(value)) found = value;
  });
  return found;
}

/// "softmax, sigmoid, ...".
template <class Enum>
std::string all_names() {
  std::string list;
  for_each_value<Enum>(
      [&](Enum value) { list += (list.empty() ? "" : ", ") + std::string(to_string(value)); });
  return list;
}

}  // namespace detail

/// "nats", or "" for signals that are plain ratios.
inline const char* unit_of(signal_kind kind) noexcept {
  return kind == signal_kind::softmax_entropy || kind == signal_kind::topk_entropy ? "nats" : "";
}

ADAPTIVE_K_NAMESPACE_END

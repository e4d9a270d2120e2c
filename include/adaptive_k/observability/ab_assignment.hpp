// Which variant of an A/B test a request belongs to: the same on every machine and after a restart.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// One arm. The first of a test is the control.
struct ab_variant {
  std::string name;  ///< neither empty nor another variant's
  /// Share of the requests, relative to the others' weights: finite, above 0 and a millionth of
  /// their sum or more.
  double weight = 1.0;
  /// Routes full K and records what its policy would have chosen (`routing_output::chosen_counts`):
  /// its savings are hypothetical, its latency and quality are the control's own.
  bool shadow = false;
};

namespace detail {

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit moves every output
/// bit.
constexpr std::uint64_t mix_bits(std::uint64_t x) noexcept {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace detail

/// FNV-1a over the id's bytes, started at a mixed salt and finished by `mix_bits`. Part of the
/// interface: it does not change between versions, so that requests keep their variant.
inline std::uint64_t ab_hash(std::string_view request_id, std::uint64_t salt = 0) noexcept {
  std::uint64_t hash = 0xCBF29CE484222325u ^ detail::mix_bits(salt);
  for (const char c : request_id)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x00000100000001B3u;
  return detail::mix_bits(hash);
}

/// The same for a number: its eight bytes, lowest first.
inline std::uint64_t ab_hash(std::uint64_t request_id, std::uint64_t salt = 0) noexcept {
  char bytes[8];
  for (int i = 0; i < 8; ++i)
    bytes[i] = static_cast<char>(static_cast<unsigned char>(request_id >> (8 * i)));
  return ab_hash(std::string_view(bytes, sizeof bytes), salt);
}

/// Assigns requests to variants by a hash of their id. Tests with different salts assign
/// independently.
class ab_assignment {
 public:
  /// `variants`, the first of them the control. `validity` says whether they are accepted.
  ab_assignment(std::vector<ab_variant> variants, std::uint64_t salt)
      : variants_(std::move(variants)), salt_(salt) {
    double total = 0.0;
    for (const ab_variant& v : variants_) total += v.weight;
    double below = 0.0;
    for (const ab_variant& v : variants_) {
      below += v.weight;
      bounds_.push_back(below / total);
    }
  }

  /// Refuses fewer than two variants, weights that are not finite and above 0, have no finite sum
  /// or are below a millionth of it, names that are empty or used twice, and a shadow as control.
  status validity() const {
    const auto invalid = status_code::invalid_argument;
    if (variants_.size() < 2)
      return status::error(invalid, "%zu `variants`, expected a control and one or more others",
                           variants_.size());
    double total = 0.0;
    for (std::size_t i = 0; i < variants_.size(); ++i) {
      const ab_variant& v = variants_[i];
      total += v.weight;
      if (v.name.empty()) return status::error(invalid, "`variants[%zu]` has no name", i);
      if (!(v.weight > 0.0) || !std::isfinite(v.weight))
        return status::error(invalid, "`weight` of variant '%.*s' is %g, expected above 0",
                             shown_length(v.name), v.name.c_str(), v.weight);
      for (std::size_t j = 0; j < i; ++j)
        if (variants_[j].name == v.name)
          return status::error(invalid, "variants[%zu] and [%zu] are both named '%.*s'", j, i,
                               shown_length(v.name), v.name.c_str());
    }
    if (!std::isfinite(total))
      return status::error(invalid, "the weights sum to %g, expected a finite number", total);
    for (const ab_variant& v : variants_)
      if (v.weight < least_share * total)
        return status::error(invalid,
                             "`weight` of variant '%.*s' is %g of %g, expected 1e-06 of it",
                             shown_length(v.name), v.name.c_str(), v.weight, total);
    if (variants_.front().shadow)
      return status::error(invalid, "the control '%.*s' cannot be a shadow",
                           shown_length(variants_.front().name), variants_.front().name.c_str());
    return {};
  }

  /// Index into `variants`. The id is the unit of randomisation, so record each id once: where the
  /// id is a user's, record the mean of that user's requests, which are not independent. No
  /// allocation; one multiplication a byte. 0, the control, where `validity` refuses.
  std::size_t assign_variant(std::string_view request_id) const noexcept {
    return variant_at(ab_hash(request_id, salt_));
  }
  /// The same for a number.
  std::size_t assign_variant(std::uint64_t request_id) const noexcept {
    return variant_at(ab_hash(request_id, salt_));
  }

  /// The variants, as given.
  const std::vector<ab_variant>& variants() const noexcept { return variants_; }
  /// The salt, as given.
  std::uint64_t salt() const noexcept { return salt_; }
  /// Share of the requests that variant `i` is to get, 0..1.
  double share(std::size_t i) const noexcept { return bounds_[i] - (i > 0 ? bounds_[i - 1] : 0.0); }

 private:
  static int shown_length(const std::string& name) noexcept {
    return static_cast<int>(detail::whole_characters(name.data(), name.size(), 80));
  }

  static constexpr double least_share = 1e-6;

  std::size_t variant_at(std::uint64_t hash) const noexcept {
    // 53 bits: every such number is a double.
    const double at = static_cast<double>(hash >> 11) / 9007199254740992.0;
    std::size_t i = 0;
    while (i + 1 < bounds_.size() && at >= bounds_[i]) ++i;
    return i;
  }

  std::vector<ab_variant> variants_;
  std::uint64_t salt_ = 0;
  std::vector<double> bounds_;  ///< [variants], ascending to 1
};

ADAPTIVE_K_NAMESPACE_END

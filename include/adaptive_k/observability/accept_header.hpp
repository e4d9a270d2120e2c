// Which exposition format an Accept header asks for, by RFC 9110.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "adaptive_k/config.hpp"
#include "adaptive_k/observability/prometheus.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline char lower_case(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

inline bool same_word(std::string_view a, std::string_view b) noexcept {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (lower_case(a[i]) != lower_case(b[i])) return false;
  return true;
}

/// Parses a field value by the rules of RFC 9110, section 5.6.
class field_reader {
 public:
  explicit field_reader(std::string_view value) noexcept : rest_(value) {}

  bool at_end() const noexcept { return rest_.empty(); }
  void skip_spaces() noexcept {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t')) rest_.remove_prefix(1);
  }
  bool take(char c) noexcept {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  /// Empty where there is none.
  std::string_view token() noexcept {
    std::size_t length = 0;
    while (length < rest_.size() && is_token(rest_[length])) ++length;
    const std::string_view taken = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return taken;
  }
  /// A token or a quoted string; false for neither.
  bool value(std::string& out) {
    if (!take('"')) {
      out = token();
      return !out.empty();
    }
    out.clear();
    while (!rest_.empty()) {
      if (take('"')) return true;
      if (take('\\') && rest_.empty()) return false;
      out += rest_[0];
      rest_.remove_prefix(1);
    }
    return false;
  }
  /// Moves behind the comma that ends an element of a list; commas in quotes are none.
  void skip_element() noexcept {
    bool quoted = false;
    while (!rest_.empty()) {
      const char c = rest_[0];
      rest_.remove_prefix(1);
      if (quoted && c == '\\' && !rest_.empty()) rest_.remove_prefix(1);
      if (c == '"') quoted = !quoted;
      if (c == ',' && !quoted) return;
    }
  }

 private:
  static bool is_token(char c) noexcept {
    return (c >= '0' && c <= '9') || (lower_case(c) >= 'a' && lower_case(c) <= 'z') ||
           (c != '\0' && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos);
  }

  std::string_view rest_;
};

/// A weight times 1000, 0 to 1000; -1 for anything else.
inline int thousandths_of(std::string_view weight) noexcept {
  if (weight.empty() || weight.size() > 5 || (weight[0] != '0' && weight[0] != '1')) return -1;
  if (weight.size() > 1 && weight[1] != '.') return -1;
  int sum = 1000 * (weight[0] - '0'), unit = 100;
  for (std::size_t i = 2; i < weight.size(); ++i, unit /= 10) {
    if (weight[i] < '0' || weight[i] > '9') return -1;
    sum += unit * (weight[i] - '0');
  }
  return sum <= 1000 ? sum : -1;
}

/// A media type that is on offer. Its charset is utf-8.
struct offered_type {
  std::string_view type, subtype, version;
};

/// What an Accept header says of a type.
struct acceptance {
  int thousandths = 0;  ///< the weight; 0: not acceptable, or not spoken of
  /// How precisely the range names the type. 0: not at all, 1: any type, 2: any subtype, 3: this
  /// type, and one more for each matching parameter.
  int precision = 0;
};

/// One element's range and weight; precision 0 where it is of another type or malformed.
inline acceptance read_range(field_reader& from, const offered_type& offer) {
  const std::string_view type = from.token();
  if (type.empty() || !from.take('/')) return {};
  const std::string_view subtype = from.token();
  if (subtype.empty() || (type == "*" && subtype != "*")) return {};
  acceptance result = {1000, type == "*" ? 1 : subtype == "*" ? 2 : 3};
  bool matches = (type == "*" || same_word(type, offer.type)) &&
                 (subtype == "*" || same_word(subtype, offer.subtype));
  bool weighed = false;
  for (;;) {
    from.skip_spaces();
    if (!from.take(';')) break;
    from.skip_spaces();
    const std::string_view name = from.token();
    if (name.empty()) continue;  // an empty parameter
    std::string value;
    if (!from.take('=') || !from.value(value)) return {};
    if (weighed) continue;  // parameters after the weight do not belong to the range
    if (same_word(name, "q")) {
      weighed = true;
      result.thousandths = thousandths_of(value);
      if (result.thousandths < 0) return {};
    } else if (same_word(name, "version")) {
      matches = matches && value == offer.version;
      ++result.precision;
    } else if (same_word(name, "charset")) {
      matches = matches && same_word(value, "utf-8");
      ++result.precision;
    } else if (!same_word(name, "escaping")) {  // of names; ours are good in every scheme
      matches = false;
    }
  }
  if (!from.at_end() && !from.take(',')) return {};
  return matches ? result : acceptance{};
}

/// By the most precise range that matches; among equals, by the greatest weight.
inline acceptance acceptance_of(std::string_view accept, const offered_type& offer) {
  acceptance best;
  field_reader elements(accept);
  while (!elements.at_end()) {
    elements.skip_spaces();
    field_reader element = elements;
    const acceptance found = read_range(element, offer);
    if (found.precision > best.precision ||
        (found.precision == best.precision && found.thousandths > best.thousandths))
      best = found;
    elements.skip_element();
  }
  return best;
}

}  // namespace detail

/// The format that `accept`, the field value of a request's Accept headers joined by commas,
/// prefers: the greater weight wins. In a draw OpenMetrics wins if the header names it, rather than
/// a wildcard. Malformed elements are ignored. A client that accepts neither format gets the older
/// one, as RFC 9110 permits.
inline exposition preferred_exposition(std::string_view accept) {
  const detail::acceptance text = detail::acceptance_of(accept, {"text", "plain", "0.0.4"});
  const detail::acceptance open =
      detail::acceptance_of(accept, {"application", "openmetrics-text", "1.0.0"});
  const bool named = open.precision >= 3 && open.thousandths > 0;
  return open.thousandths > text.thousandths || (named && open.thousandths == text.thousandths)
             ? exposition::openmetrics
             : exposition::prometheus;
}

ADAPTIVE_K_NAMESPACE_END

// K policies in one word, as the command line takes them:
//   full                           the model's own routing
//   fixed:4                        4 experts for every token
//   top_p:0.9                      least k with 90% of the top-K0 mass
//   score_ratio:0.2                experts with at least 0.2 of the best score
//   entropy:4,6,8@2.5,3.2          4 below 2.5 nats, 6 below 3.2 nats, else 8
// `SIGNAL:K,...@THRESHOLD,...` works with every signal: softmax_entropy (entropy for short) and
// topk_entropy in nats, normalized_entropy, topk_mass (top_p), score_ratio, margin.
//   path.json                      a policy's file, or a preset's: then its default policy
// Any policy, also one of a preset or a file, takes settings behind it:
//   ,a=0.5   mass_exponent         ,k_min=2   ,k_max=6   bounds on k
//   ,lambda=0.01                   price of one expert (distortion policies)
//   ,super_experts=17+5            experts that no token drops, in every layer
#pragma once

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/format/policy_file.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

inline constexpr const char* spec_forms =
    "full, fixed:K, top_p:P, score_ratio:T, SIGNAL:K,...@THRESHOLD,... or the path of a .json file "
    "with a policy or a preset";

inline std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

/// Read as JSON reads numbers, whatever the locale; ".5" is allowed too.
inline float spec_number(const std::string& spec, const std::string& text) {
  const bool starts_with_point = !text.empty() && text.front() == '.';
  // Text of these characters alone is a number to the parser, or an error.
  const bool may_be_number =
      text.size() <= 100 && text.find_first_not_of("0123456789.+-eE") == std::string::npos;
  const json parsed =
      may_be_number ? json::parse((starts_with_point ? "0" : "") + text, nullptr, false) : json();
  const float number = parsed.is_number() ? parsed.get<float>() : std::nanf("");
  if (!std::isfinite(number))
    throw preset_error("policy '" + spec + "'", "", "'" + text + "', expected a finite number");
  return number;
}

inline int spec_k(const std::string& spec, const std::string& text) {
  const bool is_number = !text.empty() && text.size() <= 3 &&
                         text.find_first_not_of("0123456789") == std::string::npos;
  const int k = is_number ? std::atoi(text.c_str()) : 0;
  if (k < 1 || k > max_top_k)
    throw preset_error("policy '" + spec + "'", "",
                       "'" + text + "', expected an integer in 1.." + std::to_string(max_top_k));
  return k;
}

struct spec_setting {
  std::string key;
  std::string value;
};

/// The path that `spec` names, "" where it names no file: the whole text where it ends in .json,
/// commas and equals signs included, else what stands before its settings.
inline std::string file_of(const std::string& spec) {
  constexpr std::string_view ending = ".json";
  const std::size_t size = spec.size();
  if (size > ending.size() && spec.compare(size - ending.size(), ending.size(), ending) == 0)
    return spec;
  const std::size_t end = spec.rfind(".json,");
  return end == std::string::npos || end == 0 ? std::string() : spec.substr(0, end + ending.size());
}

/// Splits "BODY,a=0.5,k_min=2" into its body and its settings.
inline std::pair<std::string, std::vector<spec_setting>> split_settings(const std::string& spec) {
  const std::size_t file = file_of(spec).size();
  std::string body = spec;
  std::vector<spec_setting> settings;
  for (;;) {
    const std::size_t comma = body.rfind(',');
    if (comma == std::string::npos || comma < file) break;
    const std::size_t equals = body.find('=', comma);
    if (equals == std::string::npos && file > 0)
      throw preset_error(
          "policy '" + spec + "'", "",
          "'" + body.substr(comma + 1) + "' behind the file, expected a setting such as a=0.5");
    if (equals == std::string::npos) break;
    const std::string key = body.substr(comma + 1, equals - comma - 1);
    if (key != "a" && key != "k_min" && key != "k_max" && key != "lambda" && key != "super_experts")
      throw preset_error("policy '" + spec + "'", key,
                         "unknown setting, expected one of a, k_min, k_max, lambda, super_experts");
    for (const spec_setting& later : settings)
      if (later.key == key)
        throw preset_error("policy '" + spec + "'", key, "the setting comes twice");
    settings.push_back({key, body.substr(equals + 1)});
    body.erase(comma);
  }
  return {std::move(body), std::move(settings)};
}

inline void read_super_experts(const std::string& spec, const std::string& text, k_policy& policy) {
  const std::string subject = "policy '" + spec + "'";
  const std::vector<std::string> ids = split(text, '+');
  if (ids.size() > static_cast<std::size_t>(max_super_experts))
    throw preset_error(subject, "super_experts",
                       std::to_string(ids.size()) + " experts, expected at most " +
                           std::to_string(max_super_experts));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    int id = -1;
    const char* const end = ids[i].data() + ids[i].size();
    const auto read = std::from_chars(ids[i].data(), end, id);
    if (read.ec != std::errc() || read.ptr != end || id < 0 || id >= max_experts)
      throw preset_error(subject, "super_experts",
                         "'" + ids[i] + "', expected the id of an expert");
    policy.super_experts[i] = static_cast<std::uint16_t>(id);
  }
  policy.num_super_experts = static_cast<std::uint8_t>(ids.size());
}

inline void apply(const std::vector<spec_setting>& settings, const std::string& spec,
                  const gating& model, preset_policy& policy) {
  const std::string subject = "policy '" + spec + "'";
  for (const spec_setting& setting : settings) {
    for (k_policy& layer : policy.layers) {
      if (setting.key == "k_min") {
        layer.k_min = static_cast<std::uint8_t>(spec_k(spec, setting.value));
      } else if (setting.key == "k_max") {
        layer.k_max = static_cast<std::uint8_t>(spec_k(spec, setting.value));
      } else if (setting.key == "a") {
        layer.mass_exponent = spec_number(spec, setting.value);
        if (layer.mass_exponent == k_policy::mass_exponent_of_model)
          throw preset_error(subject, "a", setting.value + ", expected 0..1");
      } else if (setting.key == "super_experts") {
        read_super_experts(spec, setting.value, layer);
      } else if (layer.rule == k_rule::distortion) {
        layer.distortion.lambda = spec_number(spec, setting.value);
      } else {
        throw preset_error(
            subject, "lambda",
            std::string("the rule is ") + to_string(layer.rule) + ", expected a distortion policy");
      }
    }
  }
  for (const k_policy& layer : policy.layers)
    if (const status fits = validate(layer, model); !fits.ok())
      throw preset_error(subject, "", fits.message());
  if (settings.empty()) return;
  if (policy.provenance != hand_set)
    policy.notes += (policy.notes.empty() ? "" : " ") + std::string("Settings changed by hand; ") +
                    "without them: " + policy.provenance + ".";
  policy.provenance = hand_set;
  policy.measured.reset();  // neither is about the changed policy
  policy.published.reset();
  policy.name = spec;
}

/// Null when `body` has none of the forms at the top of this file.
inline std::optional<k_policy> read_shorthand(const std::string& body, const std::string& spec,
                                              const gating& model) {
  if (body == "full") return k_policy::full();
  const std::size_t colon = body.find(':');
  if (colon == std::string::npos) return std::nullopt;
  std::string name = body.substr(0, colon);
  const std::string rest = body.substr(colon + 1);
  if (name == "fixed") return k_policy::fixed(spec_k(spec, rest));
  if (name == "entropy") name = to_string(signal_kind::softmax_entropy);
  if (name == "top_p") name = to_string(signal_kind::topk_mass);
  const std::optional<signal_kind> signal = find_name<signal_kind>(name);
  if (!signal || *signal == signal_kind::none) return std::nullopt;

  const std::size_t at = rest.find('@');
  if (at == std::string::npos) {
    if (*signal == signal_kind::topk_mass)
      return k_policy::top_p(spec_number(spec, rest), model.top_k);
    if (*signal == signal_kind::score_ratio)
      return k_policy::score_ratio(spec_number(spec, rest), model.top_k);
    throw preset_error("policy '" + spec + "'", "",
                       "no '@', expected " + name + ":K,...@THRESHOLD,...");
  }
  std::vector<int> values;
  std::vector<float> limits;
  for (const std::string& k : split(rest.substr(0, at), ',')) values.push_back(spec_k(spec, k));
  if (at + 1 < rest.size())
    for (const std::string& t : split(rest.substr(at + 1), ','))
      limits.push_back(spec_number(spec, t));
  if (limits.size() + 1 != values.size())
    throw preset_error("policy '" + spec + "'", "",
                       std::to_string(limits.size()) + " thresholds for " +
                           std::to_string(values.size()) +
                           " values of K, expected one fewer than values");
  k_policy policy;
  policy.set_thresholds(*signal, values.data(), static_cast<int>(values.size()), limits.data(),
                        static_cast<int>(limits.size()));
  return policy;
}

/// The shortest decimal that reads back as the same float, whatever the locale.
inline std::string shortest(float value) {
  char text[32];
  char* end = text;
  for (int digits = 1; digits <= std::numeric_limits<float>::max_digits10; ++digits) {
    end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, digits).ptr;
    float read = 0.0f;
    if (std::from_chars(text, end, read).ec == std::errc() && read == value) break;
  }
  return std::string(text, end);
}

inline std::string thresholds_spec(const k_policy& policy, int top_k) {
  const int count = policy.num_k_values;
  bool is_alike = is_per_rank(policy.signal) && count == top_k && count > 1;
  std::string values, limits;
  for (int i = 0; i < count; ++i)
    values += (i == 0 ? "" : ",") + std::to_string(policy.k_values[i]);
  for (int i = 0; i + 1 < count; ++i) {
    limits += (i == 0 ? "" : ",") + shortest(policy.thresholds[i]);
    is_alike = is_alike && policy.thresholds[i] == policy.thresholds[0];
  }
  if (!is_alike) return std::string(to_string(policy.signal)) + ":" + values + "@" + limits;
  return (policy.signal == signal_kind::topk_mass ? "top_p:" : "score_ratio:") +
         shortest(policy.thresholds[0]);
}

}  // namespace detail

/// The policy in the form that `parse_policy` reads; a distortion policy, which needs its tables,
/// by its rule's name alone. With the model's `top_k`, rules with one threshold for all ranks are
/// written short, as top_p:0.9 and score_ratio:0.2.
inline std::string to_spec(const k_policy& policy, int top_k = 0) {
  std::string spec = to_string(policy.rule);
  switch (policy.rule) {
    case k_rule::full:
      break;
    case k_rule::fixed:
      spec += ":" + std::to_string(policy.k_values[0]);
      break;
    case k_rule::thresholds:
      spec = detail::thresholds_spec(policy, top_k);
      break;
    case k_rule::distortion:
      spec += ",lambda=" + detail::shortest(policy.distortion.lambda);
      break;
  }
  if (policy.mass_exponent != k_policy::mass_exponent_of_model)
    spec += ",a=" + detail::shortest(policy.mass_exponent);
  if (policy.k_min != 1) spec += ",k_min=" + std::to_string(policy.k_min);
  if (policy.k_max != max_top_k) spec += ",k_max=" + std::to_string(policy.k_max);
  for (int i = 0; i < policy.num_super_experts; ++i)
    spec += (i == 0 ? ",super_experts=" : "+") + std::to_string(policy.super_experts[i]);
  return spec;
}

/// Reads a policy for `model` from `spec`: one of the forms at the top of this file, or a path to
/// a policy file (one entry of a calibration file's `policies`) or to a calibration file of a
/// router like `model`, whose default policy is then taken. Names are looked up in `known` first.
/// `num_layers` is the number of MoE layers, 0 if unknown. Throws preset_error.
inline preset_policy parse_policy(std::string_view spec, const gating& model, int num_layers = 0,
                                  const std::vector<preset_policy>& known = {}) {
  const std::string text(spec);
  const auto [body, settings] = detail::split_settings(text);
  preset_policy policy;
  bool is_known = false;
  for (const preset_policy& candidate : known) {
    if (candidate.name != body) continue;
    policy = candidate;
    is_known = true;
  }
  if (!is_known) {
    if (detail::file_of(body) == body && !body.empty()) {
      const detail::json_node root = detail::read_json_file(body);
      policy = root.find("policies") ? detail::read_default_policy(root, model, num_layers)
                                     : detail::read_policy(root, model, num_layers);
    } else if (const auto shorthand = detail::read_shorthand(body, text, model)) {
      policy.name = text;
      policy.provenance = shorthand->rule == k_rule::full ? detail::own_routing : detail::hand_set;
      policy.layers.push_back(*shorthand);
    } else {
      std::string names;
      for (const preset_policy& candidate : known)
        if (candidate.name != "full") names += candidate.name + ", ";  // a form of its own
      throw preset_error("policy '" + text + "'", "",
                         "unknown policy, expected " + names + detail::spec_forms);
    }
  }
  detail::apply(settings, text, model, policy);
  return policy;
}

ADAPTIVE_K_NAMESPACE_END

// Where a policy comes from: claims carried from elsewhere, or a measurement.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "adaptive_k/calibration/format/json_reader.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// What a policy's publication claims for it; none of it was measured by this project.
struct published_claims {
  std::string unit;                           ///< of `thresholds` and `mean_signal`, as published
  std::vector<double> thresholds;             ///< as published
  std::optional<double> mean_k;               ///< over tokens and layers
  std::optional<double> saving;               ///< of expert calls, as a share of 1
  std::optional<double> mean_signal;          ///< in `unit`
  std::string dataset;                        ///< of the two perplexities
  std::optional<double> baseline_perplexity;  ///< under full K
  std::optional<double> adaptive_perplexity;  ///< under the policy
  std::vector<std::string> contradictions;    ///< between these figures, in words
};

/// A text that a policy was calibrated on.
struct calibrated_text {
  std::string name;         ///< of its domain
  std::string data;         ///< which text, in words
  std::int64_t tokens = 0;  ///< of it that were used
};

/// How a policy was measured, and what came out.
struct policy_measurement {
  std::string model;                       ///< by name
  std::string data;                        ///< which text, in words
  std::int64_t tokens = 0;                 ///< measured on
  std::string date;                        ///< YYYY-MM-DD
  std::string command;                     ///< that measures it again
  std::optional<double> mean_k;            ///< over tokens and layers
  std::optional<double> expert_savings;    ///< against the model's own top-k
  std::optional<double> mean_kl;           ///< nats, to full K
  std::optional<double> fixed_k_mean_kl;   ///< of the control: fixed K at equal mean K
  std::optional<double> perplexity_ratio;  ///< adaptive / full
  /// The domains that it was calibrated on; empty where the file does not say. Outside them what is
  /// measured here does not hold.
  std::vector<calibrated_text> calibrated_on;
  std::optional<double> sensitivity_exponent;  ///< q in [0, 1]: layers are weighed by g^q
  /// Share of the tokens of those domains that routing_metrics::out_of_domain counts: what a
  /// domain_watch expects.
  std::optional<double> out_of_domain;
};

/// Where a policy comes from.
struct policy_origin {
  /// "the model's own routing", "published, not reproduced", "measured" or "hand-set".
  std::string provenance;
  std::string source;                          ///< a publication or a file; "" where there is none
  std::string notes;                           ///< in words
  std::optional<published_claims> published;   ///< where its origin claims something
  std::optional<policy_measurement> measured;  ///< where this project measured it
};

namespace detail {

inline constexpr const char* own_routing = "the model's own routing";
inline constexpr const char* published_only = "published, not reproduced";
inline constexpr const char* measured_here = "measured";
inline constexpr const char* hand_set = "hand-set";

inline std::optional<double> number_of(const json_node& node, const char* key) {
  const auto found = node.find(key);
  return found ? std::optional<double>(found->as_number()) : std::nullopt;
}

/// The same where it must lie within least..most.
inline std::optional<double> number_within(const json_node& node, const char* key, double least,
                                           double most, const char* expected) {
  const std::optional<double> number = number_of(node, key);
  if (number && !(*number >= least && *number <= most)) node.find(key)->refuse(expected);
  return number;
}

inline constexpr double any_amount = (std::numeric_limits<double>::max)();

inline std::optional<double> mean_k_of(const json_node& node) {
  return number_within(node, "mean_k", 0.0, max_top_k, "a number of experts, 0..32");
}
inline std::optional<double> share_of(const json_node& node, const char* key) {
  return number_within(node, key, 0.0, 1.0, "a share, 0..1");
}

inline published_claims read_claims(const json_node& node) {
  node.expect_keys(
      {"unit", "thresholds", "mean_k", "saving", "mean_signal", "perplexity", "contradictions"});
  published_claims claims;
  const json_node unit = node.at("unit", "\"nats\" or \"bits\"");
  claims.unit = unit.as_string();
  if (claims.unit != "nats" && claims.unit != "bits") unit.refuse("\"nats\" or \"bits\"");
  claims.thresholds = node.at("thresholds", "an array of numbers").as_numbers();
  claims.mean_k = mean_k_of(node);
  claims.saving = share_of(node, "saving");
  claims.mean_signal = number_within(node, "mean_signal", -1.0, 1024.0, "a signal, -1..1024");
  if (const auto perplexity = node.find("perplexity")) {
    perplexity->expect_keys({"dataset", "baseline", "adaptive"});
    claims.dataset = perplexity->at("dataset", "a name").as_string();
    claims.baseline_perplexity = perplexity->at("baseline", "a number").as_number();
    claims.adaptive_perplexity = perplexity->at("adaptive", "a number").as_number();
  }
  if (const auto list = node.find("contradictions")) claims.contradictions = list->as_strings();
  return claims;
}

inline std::vector<calibrated_text> read_calibrated_on(const json_node& node) {
  constexpr const char* expected = "an array with one object a text, one or more";
  const std::size_t count = node.expect_array(expected);
  if (count == 0) node.refuse(expected);
  std::vector<calibrated_text> texts;
  for (std::size_t i = 0; i < count; ++i) {
    const json_node text = node.at(i);
    text.expect_keys({"name", "data", "tokens"});
    texts.push_back({text.at("name", "a domain's name").as_string(),
                     text.at("data", "the text calibrated on").as_string(),
                     text.at("tokens", "an integer").as_integer(1, INT64_MAX)});
    for (std::size_t before = 0; before < i; ++before)
      if (texts[before].name == texts[i].name)
        text.at("name", "").refuse("a name that no text before it has");
  }
  return texts;
}

inline policy_measurement read_measurement(const json_node& node) {
  node.expect_keys({"model", "data", "tokens", "date", "command", "mean_k", "expert_savings",
                    "mean_kl", "fixed_k_mean_kl", "perplexity_ratio", "calibrated_on",
                    "sensitivity_exponent", "out_of_domain"});
  policy_measurement result;
  result.model = node.at("model", "the model measured").as_string();
  result.data = node.at("data", "the text measured on").as_string();
  result.tokens = node.at("tokens", "an integer").as_integer(1, INT64_MAX);
  result.date = node.at("date", "a date").as_string();
  result.command = node.at("command", "the command that measured it").as_string();
  result.mean_k = mean_k_of(node);
  result.expert_savings = share_of(node, "expert_savings");
  result.mean_kl = number_within(node, "mean_kl", 0.0, any_amount, "0 or more");
  result.fixed_k_mean_kl = number_within(node, "fixed_k_mean_kl", 0.0, any_amount, "0 or more");
  result.perplexity_ratio = number_within(node, "perplexity_ratio", 0.0, any_amount, "0 or more");
  if (const auto texts = node.find("calibrated_on"))
    result.calibrated_on = read_calibrated_on(*texts);
  result.sensitivity_exponent =
      number_within(node, "sensitivity_exponent", 0.0, 1.0, "an exponent, 0..1");
  result.out_of_domain = share_of(node, "out_of_domain");
  return result;
}

/// Reads the provenance, and the claims or the measurement that it requires.
inline void read_provenance(const json_node& node, policy_origin& policy) {
  const json_node provenance = node.at("provenance", "where the numbers come from");
  policy.provenance = provenance.as_string();
  if (policy.provenance != own_routing && policy.provenance != published_only &&
      policy.provenance != measured_here && policy.provenance != hand_set)
    provenance.refuse(std::string("one of \"") + own_routing + "\", \"" + published_only +
                      "\", \"" + measured_here + "\", \"" + hand_set + "\"");
  if (const auto source = node.find("source")) policy.source = source->as_string();
  if (const auto notes = node.find("notes")) policy.notes = notes->as_string();
  if (const auto claims = node.find("published")) policy.published = read_claims(*claims);
  if (const auto measured = node.find("measured")) policy.measured = read_measurement(*measured);
  if (policy.provenance == published_only) {
    node.at("source", "where it was published");
    node.at("published", "the claims as published");
  }
  if (policy.provenance == measured_here) node.at("measured", "how it was measured");
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

// K policies as calibration files hold them: an entry of `policies`, or a file of its own.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adaptive_k/calibration/format/json_reader.hpp"
#include "adaptive_k/calibration/format/provenance.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"
#include "adaptive_k/host/router.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// The `schema_version` that is read and written.
inline constexpr int calibration_schema_version = 1;
inline constexpr int calibration_max_layers = 10000;  ///< MoE layers of a model

/// A named policy: one entry for every layer, or one for each.
struct preset_policy : policy_origin {
  std::string name;                    ///< by which it is asked for
  std::vector<k_policy> layers;        ///< one entry serves every layer
  std::shared_ptr<const void> tables;  ///< owns what distortion policies point to
};

namespace detail {

/// A layer's keys: its own, then those that the policy sets for all layers.
class layered_node {
 public:
  layered_node(std::optional<json_node> own, std::optional<json_node> shared)
      : own_(std::move(own)), shared_(std::move(shared)) {}

  std::optional<json_node> find(const char* key) const {
    auto found = own_ ? own_->find(key) : std::nullopt;
    return found || !shared_ ? found : shared_->find(key);
  }

  json_node at(const char* key, const char* expected) const {
    const auto found = find(key);
    return found ? *found : home().at(key, expected);  // the latter throws
  }

  layered_node child(const char* key) const {
    return {own_ ? own_->find(key) : std::nullopt, shared_ ? shared_->find(key) : std::nullopt};
  }

  /// The object that a missing value is reported for.
  const json_node& home() const { return own_ ? *own_ : *shared_; }
  bool exists() const { return own_ || shared_; }

 private:
  std::optional<json_node> own_;
  std::optional<json_node> shared_;
};

/// Throws what `validate` refused, at the key of the field that is at fault.
inline void refuse_unless(const status& checked, const layered_node& node) {
  if (checked.ok()) return;
  std::string field(checked.field());
  std::string index;
  if (const std::size_t bracket = field.find('['); bracket != std::string::npos) {
    index = field.substr(bracket);
    field.erase(bracket);
  }
  layered_node place = node;
  if (const std::size_t dot = field.find('.'); dot != std::string::npos) {
    place = node.child(field.substr(0, dot).c_str());
    field.erase(0, dot + 1);
  }
  auto found = place.find(field.c_str());
  if (!found && field == "thresholds") found = place.find("thresholds_nats");
  if (!found) throw preset_error(node.home().file(), node.home().path(), checked.message());
  // "KEY: VALUE, expected ...": the key stands for the field and its verb.
  std::string_view problem = checked.field().data() + checked.field().size();
  constexpr std::string_view verb = " is ";
  if (problem.substr(0, verb.size()) == verb)
    problem.remove_prefix(verb.size());
  else
    problem = checked.message();
  throw preset_error(found->file(), found->path() + index, std::string(problem));
}

/// Owns the numbers that distortion policies point to. Layers that share a table share its storage.
class policy_tables {
 public:
  /// `node` holds [rows, columns] numbers.
  const float* add(const json_node& node, std::size_t rows, std::size_t columns) {
    const auto known = known_.find(&node.value());
    if (known != known_.end()) return known->second;
    const std::string shape =
        "[" + std::to_string(rows) + ", " + std::to_string(columns) + "] numbers (top_k - 1 rows)";
    if (node.expect_array(shape.c_str()) != rows)
      throw preset_error(node.file(), node.path(),
                         std::to_string(node.value().size()) + " rows, expected " + shape);
    std::vector<float> table;
    table.reserve(rows * columns);
    for (std::size_t r = 0; r < rows; ++r) {
      const json_node row = node.at(r);
      if (row.expect_array(shape.c_str()) != columns)
        throw preset_error(row.file(), row.path(),
                           std::to_string(row.value().size()) + " columns, expected " + shape);
      for (std::size_t c = 0; c < columns; ++c) table.push_back(row.at(c).as_float());
    }
    storage_.push_back(std::move(table));
    return known_[&node.value()] = storage_.back().data();  // outlives moves of the outer vector
  }

  /// Of the first row of a table; 0 without rows.
  static std::size_t columns_of(const json_node& node) {
    return node.expect_array("an array of rows of numbers") == 0
               ? 0
               : node.at(0).expect_array("an array of numbers");
  }

  bool empty() const noexcept { return storage_.empty(); }
  std::vector<std::vector<float>> take() { return std::move(storage_); }

 private:
  std::vector<std::vector<float>> storage_;
  std::map<const json*, const float*> known_;
};

inline void read_thresholds(const layered_node& node, k_policy& policy) {
  policy.signal = node.at("signal", "the name of a signal").as_name<signal_kind>();
  const bool in_nats = unit_of(policy.signal)[0] != '\0';
  const char* key = in_nats ? "thresholds_nats" : "thresholds";
  if (const auto wrong = node.find(in_nats ? "thresholds" : "thresholds_nats"))
    wrong->refuse(std::string(key) + " for the signal " + to_string(policy.signal));

  const json_node values_node = node.at("k_values", "an array of ascending integers");
  const json_node limits_node = node.at(key, "an array, one fewer than k_values");
  std::vector<int> values(values_node.expect_array("an array of integers"));
  std::vector<float> limits(limits_node.expect_array("an array of numbers"));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = values_node.at(i).as_int(1, max_top_k);
  for (std::size_t i = 0; i < limits.size(); ++i) limits[i] = limits_node.at(i).as_float();
  if (limits.size() + 1 != values.size())
    throw preset_error(limits_node.file(), limits_node.path(),
                       std::to_string(limits.size()) + " thresholds for " +
                           std::to_string(values.size()) +
                           " k_values, expected one fewer than k_values");
  policy.set_thresholds(policy.signal, values.data(), static_cast<int>(values.size()),
                        limits.data(), static_cast<int>(limits.size()));
}

inline void read_distortion(const layered_node& node, const gating& model, policy_tables& tables,
                            k_policy& policy) {
  const layered_node keys = node.child("distortion");
  if (!keys.exists()) node.at("distortion", "an object with coefficients and lambda");
  const auto rows = static_cast<std::size_t>(model.top_k - 1);
  const auto experts = static_cast<std::size_t>(model.num_experts);
  distortion_ref ref;
  ref.coefficients = tables.add(keys.at("coefficients", "an array [top_k - 1, 5]"), rows,
                                distortion_ref::num_features);
  if (const auto table = keys.find("first_expert"))
    ref.first_expert = tables.add(*table, rows, experts);
  if (const auto table = keys.find("next_expert"))
    ref.next_expert = tables.add(*table, rows, experts);
  if (const auto head = keys.find("head")) {
    ref.hidden_size = static_cast<int>(policy_tables::columns_of(*head));
    if (ref.hidden_size == 0) head->refuse("top_k - 1 rows of one number or more");
    ref.head = tables.add(*head, rows, static_cast<std::size_t>(ref.hidden_size));
  }
  if (const auto g = keys.find("sensitivity")) ref.sensitivity = g->as_float();
  ref.lambda = keys.at("lambda", "a number, 0 or more").as_float();
  policy = k_policy::min_distortion(ref);
  if (const auto signal = node.find("signal")) policy.signal = signal->as_name<signal_kind>();
}

inline void read_super_experts(const json_node& list, const gating& model, k_policy& policy) {
  const std::size_t count = list.expect_array("an array of ids of experts");
  if (count > static_cast<std::size_t>(max_super_experts))
    throw preset_error(list.file(), list.path(),
                       std::to_string(count) + " experts, expected at most " +
                           std::to_string(max_super_experts) + " a layer");
  for (std::size_t i = 0; i < count; ++i)
    policy.super_experts[i] =
        static_cast<std::uint16_t>(list.at(i).as_int(0, model.num_experts - 1));
  policy.num_super_experts = static_cast<std::uint8_t>(count);
}

inline void read_domain(const json_node& node, k_policy& policy) {
  node.expect_keys({"signal", "first_share"});
  const auto read = [&](const char* key, float& least, float& most) {
    constexpr const char* expected = "an array [least, most]";
    const json_node pair = node.at(key, expected);
    if (pair.expect_array(expected) != 2) pair.refuse(expected);
    least = pair.at(0).as_float();
    most = pair.at(1).as_float();
  };
  read("signal", policy.domain.signal_least, policy.domain.signal_most);
  read("first_share", policy.domain.first_share_least, policy.domain.first_share_most);
  policy.domain.given = true;
  const status fits = validate(policy.domain);
  if (!fits.ok()) throw preset_error(node.file(), node.path(), fits.message());
}

inline k_policy read_k_policy(const layered_node& node, const gating& model,
                              policy_tables& tables) {
  k_policy policy;
  const k_rule rule = node.at("rule", "the name of a rule").as_name<k_rule>();
  switch (rule) {
    case k_rule::full:
      break;
    case k_rule::fixed:
      policy = k_policy::fixed(node.at("k", "an integer, 1..top_k").as_int(1, max_top_k));
      break;
    case k_rule::thresholds:
      read_thresholds(node, policy);
      break;
    case k_rule::distortion:
      read_distortion(node, model, tables, policy);
      break;
  }
  if (const auto k = node.find("k_min"))
    policy.k_min = static_cast<std::uint8_t>(k->as_int(1, max_top_k));
  if (const auto k = node.find("k_max"))
    policy.k_max = static_cast<std::uint8_t>(k->as_int(1, max_top_k));
  if (const auto a = node.find("mass_exponent")) {
    policy.mass_exponent = a->as_float();
    if (policy.mass_exponent == k_policy::mass_exponent_of_model)
      a->refuse("0..1, or no such key for the model's own");
  }
  if (const auto list = node.find("super_experts")) read_super_experts(*list, model, policy);
  if (const auto domain = node.find("domain")) read_domain(*domain, policy);
  refuse_unless(validate(policy, model), node);
  return policy;
}

/// Refuses keys that the layer's rule does not read, as they would have no effect.
inline void expect_keys_of_rule(const json_node& own, k_rule rule) {
  const auto refuse_key = [&](const char* key) {
    if (const auto stray = own.find(key))
      stray->refuse(std::string("no such key with the rule ") + to_string(rule));
  };
  if (rule != k_rule::fixed) refuse_key("k");
  if (rule != k_rule::distortion) refuse_key("distortion");
  if (rule != k_rule::thresholds)
    for (const char* key : {"k_values", "thresholds", "thresholds_nats"}) refuse_key(key);
  if (rule == k_rule::full || rule == k_rule::fixed) refuse_key("signal");
  if (rule == k_rule::full) refuse_key("super_experts");
}

/// `num_layers` MoE layers; 0 where that is not known.
inline preset_policy read_policy(const json_node& node, const gating& model, int num_layers) {
  node.expect_keys({"$schema",       "schema_version", "name",       "provenance",
                    "source",        "notes",          "rule",       "k",
                    "signal",        "k_values",       "thresholds", "thresholds_nats",
                    "distortion",    "mass_exponent",  "k_min",      "k_max",
                    "super_experts", "domain",         "layers",     "published",
                    "measured"});
  if (const auto version = node.find("schema_version"))
    version->as_integer(calibration_schema_version, calibration_schema_version);
  preset_policy policy;
  policy.name = node.at("name", "a name").as_string();
  read_provenance(node, policy);

  policy_tables tables;
  const auto check_distortion = [](const json_node& own) {
    if (const auto distortion = own.find("distortion"))
      distortion->expect_keys(
          {"coefficients", "first_expert", "next_expert", "head", "sensitivity", "lambda"});
  };
  const auto add_layer = [&](const layered_node& keys, const json_node& own) {
    check_distortion(own);
    policy.layers.push_back(read_k_policy(keys, model, tables));
    expect_keys_of_rule(own, policy.layers.back().rule);
  };
  const auto layers = node.find("layers");
  if (!layers) {
    add_layer({node, std::nullopt}, node);
  } else {
    check_distortion(node);
    const std::size_t count = layers->expect_array("an array with one object a layer");
    if (count == 0 || count > static_cast<std::size_t>(calibration_max_layers) ||
        (num_layers > 0 && count != static_cast<std::size_t>(num_layers)))
      throw preset_error(layers->file(), layers->path(),
                         std::to_string(count) + " layers, expected " +
                             (num_layers > 0 ? std::to_string(num_layers)
                                             : "1.." + std::to_string(calibration_max_layers)));
    for (std::size_t i = 0; i < count; ++i) {
      const json_node layer = layers->at(i);
      layer.expect_keys({"rule", "k", "signal", "k_values", "thresholds", "thresholds_nats",
                         "distortion", "mass_exponent", "k_min", "k_max", "super_experts",
                         "domain"});
      add_layer({layer, node}, layer);
    }
  }
  for (const k_policy& layer : policy.layers)
    if (policy.provenance == own_routing && layer.rule != k_rule::full)
      node.at("provenance", "")
          .refuse(std::string("another provenance for the rule ") + to_string(layer.rule));
  if (!tables.empty())
    policy.tables = std::make_shared<const std::vector<std::vector<float>>>(tables.take());
  return policy;
}

inline gating read_gating(const json_node& node) {
  node.expect_keys({"kind", "num_experts", "top_k", "renormalize", "selection_bias",
                    "routed_scaling_factor", "n_group", "topk_group", "group_rank",
                    "jitter_epsilon"});
  gating model;
  model.kind = node.at("kind", "the name of a gating").as_name<gating_kind>();
  model.num_experts = node.at("num_experts", "an integer").as_int(1, max_experts);
  model.top_k = node.at("top_k", "an integer").as_int(1, max_top_k);
  model.renormalize = node.at("renormalize", "true or false").as_bool();
  model.selection_bias = node.at("selection_bias", "true or false").as_bool();
  if (const auto v = node.find("routed_scaling_factor"))
    model.routed_scaling_factor = v->as_float();
  if (const auto v = node.find("n_group")) model.n_group = v->as_int(1, max_experts);
  if (const auto v = node.find("topk_group")) model.topk_group = v->as_int(1, max_experts);
  if (const auto v = node.find("group_rank")) model.group_rank = v->as_name<group_score>();
  if (const auto v = node.find("jitter_epsilon")) model.jitter_epsilon = v->as_float();
  refuse_unless(validate(model), {node, std::nullopt});
  return model;
}

inline bool is_same_router(const gating& a, const gating& b) noexcept {
  return a.kind == b.kind && a.num_experts == b.num_experts && a.top_k == b.top_k &&
         a.renormalize == b.renormalize && a.selection_bias == b.selection_bias;
}

/// Such as "softmax, renormalised, 8 of 64 experts".
inline std::string describe_router(const gating& model) {
  return std::string(to_string(model.kind)) + (model.selection_bias ? " + bias" : "") +
         (model.renormalize ? ", renormalised, " : ", ") + std::to_string(model.top_k) + " of " +
         std::to_string(model.num_experts) + " experts";
}

/// The default policy of a preset's file, which must be of a router like `model`.
inline preset_policy read_default_policy(const json_node& root, const gating& model,
                                         int num_layers) {
  root.at("schema_version", "an integer")
      .as_integer(calibration_schema_version, calibration_schema_version);
  const json_node node = root.at("gating", "an object");
  const gating own = read_gating(node);
  if (!is_same_router(own, model))
    throw preset_error(root.file(), node.path(),
                       describe_router(own) + ", expected " + describe_router(model) +
                           ", the model that is routed");
  const json_node chosen = root.at("default_policy", "the name of one of the policies");
  const json_node policies = root.at("policies", "an array of policies");
  const std::size_t count = policies.expect_array("an array of policies");
  for (std::size_t i = 0; i < count; ++i) {
    const auto name = policies.at(i).find("name");
    if (name && name->value() == chosen.value())
      return read_policy(policies.at(i), model, num_layers);
  }
  chosen.refuse("the name of a policy of this file");
}

}  // namespace detail

/// A router for `policy`. The router keeps the tables of a policy alive, for which it needs a
/// policy for each of the model's `num_layers` MoE layers.
inline router make_router(const gating& model, const preset_policy& policy, int num_layers,
                          router_options options = {}) {
  if (policy.layers.size() == 1 && policy.tables == nullptr)
    return router(model, policy.layers.front(), options);
  std::vector<k_policy> layers = policy.layers;
  if (layers.size() == 1 && num_layers > 1)
    layers.assign(static_cast<std::size_t>(num_layers), policy.layers.front());
  return router(model, std::move(layers), options, policy.tables);
}

ADAPTIVE_K_NAMESPACE_END

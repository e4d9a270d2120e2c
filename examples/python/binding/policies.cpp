// Gatings, K policies and presets for Python.
#include <adaptive_k/calibration/policy_spec.hpp>
#include <adaptive_k/calibration/preset.hpp>
#include <adaptive_k/core/gating.hpp>
#include <adaptive_k/core/k_policy.hpp>
#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#include "arrays.hpp"
#include "parts.hpp"

namespace adaptive_k_python {
namespace {

using adaptive_k::distortion_ref;
using adaptive_k::gating;
using adaptive_k::k_policy;
using adaptive_k::preset;

bound_policy of_one(const char* name, const k_policy& layer) {
  bound_policy policy;
  policy.name = name;
  policy.provenance = layer.rule == adaptive_k::k_rule::full ? adaptive_k::detail::own_routing
                                                             : adaptive_k::detail::hand_set;
  policy.layers.push_back(layer);
  return policy;
}

bound_policy for_router(adaptive_k::preset_policy&& found, const gating& model) {
  bound_policy policy;
  static_cast<adaptive_k::preset_policy&>(policy) = std::move(found);
  policy.tables_top_k = model.top_k;
  policy.tables_num_experts = model.num_experts;
  return policy;
}

bound_policy thresholds_of(const std::string& signal, const std::vector<int>& k_values,
                           const std::vector<float>& thresholds) {
  k_policy layer;
  layer.set_thresholds(enum_of<adaptive_k::signal_kind>("signal", signal), k_values.data(),
                       static_cast<int>(k_values.size()), thresholds.data(),
                       static_cast<int>(thresholds.size()));
  return of_one("thresholds", layer);
}

std::vector<float> table_of(const char* name, const std::optional<input_array>& array,
                            std::int64_t rows, std::int64_t columns) {
  if (!array) return {};
  if (array->dtype() != nb::dtype<float>())
    refuse(name, "is of " + name_of(array->dtype()) + ", expected float32");
  const std::int64_t stride = require_matrix(name, *array, rows, columns, false);
  std::vector<float> values;
  for (std::size_t r = 0; r < array->shape(0); ++r) {
    const float* row =
        static_cast<const float*>(array->data()) + static_cast<std::int64_t>(r) * stride;
    values.insert(values.end(), row, row + columns);
  }
  return values;
}

bound_policy distortion_of(const input_array& coefficients, int num_experts,
                           const std::optional<input_array>& first_expert,
                           const std::optional<input_array>& next_expert, float sensitivity,
                           float lambda) {
  auto tables = std::make_shared<owned_tables>();
  tables->coefficients = table_of("coefficients", coefficients, -1, distortion_ref::num_features);
  const auto rows = static_cast<std::int64_t>(coefficients.shape(0));
  tables->first_expert = table_of("first_expert", first_expert, rows, num_experts);
  tables->next_expert = table_of("next_expert", next_expert, rows, num_experts);
  distortion_ref model;
  model.coefficients = tables->coefficients.data();
  if (first_expert) model.first_expert = tables->first_expert.data();
  if (next_expert) model.next_expert = tables->next_expert.data();
  model.sensitivity = sensitivity;
  model.lambda = lambda;
  bound_policy policy = of_one("distortion", k_policy::min_distortion(model));
  policy.tables = tables;
  policy.tables_top_k = static_cast<int>(rows) + 1;
  policy.tables_num_experts = num_experts;
  return policy;
}

bound_policy per_layer(const std::vector<bound_policy>& layers) {
  if (layers.empty()) throw nb::value_error("layers: none, expected one policy for each layer");
  auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  bound_policy all;
  all.name = "per layer";
  all.provenance = adaptive_k::detail::hand_set;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const bound_policy& each = layers[i];
    const std::string here = "layers[" + std::to_string(i) + "]";
    if (each.layers.size() != 1)
      refuse(here, "has " + std::to_string(each.layers.size()) + " layers, expected 1");
    all.layers.push_back(each.layers[0]);
    owners->push_back(each.tables);
    if (each.tables_top_k == 0) continue;
    if (all.tables_top_k != 0 && (all.tables_top_k != each.tables_top_k ||
                                  all.tables_num_experts != each.tables_num_experts))
      refuse(here, "is made for another router than the ones before it");
    all.tables_top_k = each.tables_top_k;
    all.tables_num_experts = each.tables_num_experts;
  }
  all.tables = owners;
  return all;
}

std::uint8_t small_k(const char* name, int k) {
  if (k < 1 || k > adaptive_k::max_top_k)
    refuse(name, std::to_string(k) + ", expected 1.." + std::to_string(adaptive_k::max_top_k));
  return static_cast<std::uint8_t>(k);
}

bound_policy with(bound_policy policy, std::optional<float> mass_exponent, std::optional<int> k_min,
                  std::optional<int> k_max, const std::optional<std::vector<int>>& super_experts) {
  const std::size_t count = super_experts ? super_experts->size() : 0;
  if (count > static_cast<std::size_t>(adaptive_k::max_super_experts))
    refuse("super_experts", std::to_string(count) + " experts, expected at most " +
                                std::to_string(adaptive_k::max_super_experts));
  for (k_policy& layer : policy.layers) {
    if (super_experts) layer.num_super_experts = static_cast<std::uint8_t>(count);
    for (std::size_t i = 0; i < count; ++i) {
      const int expert = (*super_experts)[i];
      if (expert < 0 || expert >= adaptive_k::max_experts)
        refuse("super_experts[" + std::to_string(i) + "]",
               std::to_string(expert) + ", expected the id of an expert");
      layer.super_experts[i] = static_cast<std::uint16_t>(expert);
    }
    if (mass_exponent) layer.mass_exponent = *mass_exponent;
    if (k_min) layer.k_min = small_k("k_min", *k_min);
    if (k_max) layer.k_max = small_k("k_max", *k_max);
  }
  return policy;
}

const k_policy& layer_of(const bound_policy& policy, int layer) {
  const auto size = static_cast<int>(policy.layers.size());
  if (size == 1) return policy.layers[0];
  if (layer < 0 || layer >= size)
    refuse("layer", std::to_string(layer) + ", expected 0.." + std::to_string(size - 1));
  return policy.layers[static_cast<std::size_t>(layer)];
}

bound_policy restricted(const bound_policy& policy, int first, int count) {
  if (policy.layers.size() == 1) return policy;
  const auto size = static_cast<int>(policy.layers.size());
  if (first < 0 || count < 1 || first + count > size)
    refuse("layers", std::to_string(first) + " to " + std::to_string(first + count - 1) +
                         ", expected within 0.." + std::to_string(size - 1));
  bound_policy part = policy;
  part.layers.assign(policy.layers.begin() + first, policy.layers.begin() + first + count);
  return part;
}

}  // namespace

void add_gating(nb::module_& module) {
  nb::class_<gating>(module, "Gating",
                     "A model's own routing: how logits become scores, selection and weights.\n\n"
                     "kind: softmax, sigmoid, top_k_softmax (over the selected), sqrt_softplus or "
                     "sparsemixer. num_experts 1..1024, top_k 1..32. Raises ValueError.")
      .def(
          "__init__",
          [](gating* self, int num_experts, int top_k, const std::string& kind, bool renormalize,
             bool selection_bias, float routed_scaling_factor, int n_group, int topk_group,
             const std::string& group_rank, float jitter_epsilon) {
            gating g;
            g.kind = enum_of<adaptive_k::gating_kind>("kind", kind);
            g.num_experts = num_experts;
            g.top_k = top_k;
            g.renormalize = renormalize;
            g.selection_bias = selection_bias;
            g.routed_scaling_factor = routed_scaling_factor;
            g.n_group = n_group;
            g.topk_group = topk_group;
            g.group_rank = enum_of<adaptive_k::group_score>("group_rank", group_rank);
            g.jitter_epsilon = jitter_epsilon;
            require(adaptive_k::validate(g));
            new (self) gating(g);
          },
          nb::arg("num_experts"), nb::arg("top_k"), nb::kw_only(), nb::arg("kind") = "softmax",
          nb::arg("renormalize") = true, nb::arg("selection_bias") = false,
          nb::arg("routed_scaling_factor") = 1.0f, nb::arg("n_group") = 1,
          nb::arg("topk_group") = 1, nb::arg("group_rank") = "top2_sum",
          nb::arg("jitter_epsilon") = 0.01f)
      .def_prop_ro("kind", [](const gating& g) { return std::string(to_string(g.kind)); })
      .def_ro("num_experts", &gating::num_experts)
      .def_ro("top_k", &gating::top_k)
      .def_ro("renormalize", &gating::renormalize)
      .def_ro("selection_bias", &gating::selection_bias)
      .def_ro("routed_scaling_factor", &gating::routed_scaling_factor)
      .def_ro("n_group", &gating::n_group)
      .def_ro("topk_group", &gating::topk_group)
      .def_prop_ro("group_rank",
                   [](const gating& g) { return std::string(to_string(g.group_rank)); })
      .def_ro("jitter_epsilon", &gating::jitter_epsilon)
      .def("__repr__", [](const gating& g) {
        std::string text = "Gating(" + std::to_string(g.num_experts) + ", " +
                           std::to_string(g.top_k) + ", kind='" + to_string(g.kind) +
                           "', renormalize=" + (g.renormalize ? "True" : "False");
        if (g.selection_bias) text += ", selection_bias=True";
        if (g.routed_scaling_factor != 1.0f)
          text +=
              ", routed_scaling_factor=" + adaptive_k::detail::shortest(g.routed_scaling_factor);
        if (g.n_group != 1)
          text += ", n_group=" + std::to_string(g.n_group) +
                  ", topk_group=" + std::to_string(g.topk_group) + ", group_rank='" +
                  to_string(g.group_rank) + "'";
        return text + ")";
      });
}

void add_policies(nb::module_& module) {
  nb::class_<bound_policy>(
      module, "Policy",
      "How many of its top-k experts a token gets: one rule for all layers, or "
      "one for each. Checked against a gating by Router.")
      .def_static(
          "full", [] { return of_one("full", k_policy::full()); },
          "k = top_k: the model's own routing, to the bit.")
      .def_static(
          "fixed", [](int k) { return of_one("fixed", k_policy::fixed(k)); }, nb::arg("k"),
          "k experts for every token, 1..top_k: the control.")
      .def_static(
          "top_p",
          [](float mass, int top_k) { return of_one("top_p", k_policy::top_p(mass, top_k)); },
          nb::arg("mass"), nb::arg("top_k"),
          "Least k whose renormalised top-k mass reaches `mass`, 0..1.")
      .def_static(
          "score_ratio",
          [](float ratio, int top_k) {
            return of_one("score_ratio", k_policy::score_ratio(ratio, top_k));
          },
          nb::arg("ratio"), nb::arg("top_k"),
          "Keeps experts whose score is `ratio`, 0..1, or more of the best one's.")
      .def_static("thresholds", &thresholds_of, nb::arg("signal"), nb::arg("k_values"),
                  nb::arg("thresholds"),
                  "The first of `k_values`, ascending, whose threshold the signal meets, else the "
                  "last. `thresholds` has one fewer, in the signal's unit: softmax_entropy and "
                  "topk_entropy in nats; normalized_entropy, topk_mass, score_ratio, margin.")
      .def_static(
          "entropy",
          [](const std::vector<int>& k_values, const std::vector<float>& thresholds_nats) {
            return thresholds_of("softmax_entropy", k_values, thresholds_nats);
          },
          nb::arg("k_values"), nb::arg("thresholds_nats"),
          "The published rule: thresholds on the entropy of the softmax over all experts, nats.")
      .def_static("min_distortion", &distortion_of, nb::arg("coefficients"), nb::arg("num_experts"),
                  nb::kw_only(), nb::arg("first_expert") = nb::none(),
                  nb::arg("next_expert") = nb::none(), nb::arg("sensitivity") = 1.0f,
                  nb::arg("price") = 0.0f,
                  "argmin over k of sensitivity * d(k) + price * k, d the predicted distortion: "
                  "coefficients [top_k - 1, 5] and tables [top_k - 1, num_experts], float32, "
                  "copied. Calibration makes them.")
      .def_static("per_layer", &per_layer, nb::arg("layers"), "One policy for each layer.")
      .def_static(
          "parse",
          [](const std::string& spec, const gating& model, int num_layers) {
            return for_router(adaptive_k::parse_policy(spec, model, num_layers), model);
          },
          nb::arg("spec"), nb::arg("gating"), nb::arg("num_layers") = 0,
          "As the command line takes them: full, fixed:4, top_p:0.9, score_ratio:0.2, "
          "entropy:4,6,8@2.5,3.2 or the path of a .json file; settings behind: ,a=0.5 ,k_min=2.")
      .def("adjusted", &with, nb::kw_only(), nb::arg("mass_exponent") = nb::none(),
           nb::arg("k_min") = nb::none(), nb::arg("k_max") = nb::none(),
           nb::arg("super_experts") = nb::none(),
           "A copy with other settings: mass_exponent a in [0, 1] (kept weights times r^-a), "
           "limits of k, experts that no token drops.")
      .def(
          "scaled",
          [](bound_policy policy, double by) {
            for (k_policy& layer : policy.layers) layer = adaptive_k::scaled(layer, by);
            return policy;
          },
          nb::arg("by"), "A copy moved by a factor above 0; larger ones save more.")
      .def("layers", &restricted, nb::arg("first"), nb::arg("count"),
           "The policies of these layers; a policy that serves every layer is itself.")
      .def_ro("name", &bound_policy::name)
      .def_ro("provenance", &bound_policy::provenance)
      .def_ro("source", &bound_policy::source)
      .def_prop_ro(
          "num_layers",
          [](const bound_policy& p) { return p.layers.size() == 1 ? 0 : p.layers.size(); },
          "0: one policy serves every layer.")
      .def(
          "rule",
          [](const bound_policy& p, int layer) {
            return std::string(to_string(layer_of(p, layer).rule));
          },
          nb::arg("layer") = 0)
      .def(
          "signal",
          [](const bound_policy& p, int layer) {
            return std::string(to_string(layer_of(p, layer).signal));
          },
          nb::arg("layer") = 0)
      .def(
          "spec",
          [](const bound_policy& p, int layer, int top_k) {
            return adaptive_k::to_spec(layer_of(p, layer), top_k);
          },
          nb::arg("layer") = 0, nb::arg("top_k") = 0, "The form that `parse` reads.")
      .def("__repr__", [](const bound_policy& p) {
        return "<Policy " + p.name + ": " + adaptive_k::to_spec(p.layers[0]) +
               (p.layers.size() == 1 ? "" : ", and one for each of the other layers") + " (" +
               p.provenance + ")>";
      });
}

void add_presets(nb::module_& module) {
  nb::exception<adaptive_k::preset_error>(module, "PresetError", PyExc_ValueError);
  nb::class_<preset>(module, "Preset", "A calibration file: gating, sizes and policies of a model.")
      .def_static(
          "load", [](const std::string& name) { return adaptive_k::load_preset(name); },
          nb::arg("name"),
          "By name, alias or path of a .json file. Raises PresetError, which lists the names.")
      .def_ro("name", &preset::name)
      .def_ro("aliases", &preset::aliases)
      .def_prop_ro("gating", [](const preset& p) { return p.model; })
      .def_ro("num_moe_layers", &preset::num_moe_layers)
      .def_ro("sources", &preset::sources)
      .def_ro("notes", &preset::notes)
      .def_ro("default_policy", &preset::default_policy)
      .def_prop_ro("file", [](const preset& p) { return p.file.string(); })
      .def_prop_ro("policies",
                   [](const preset& p) {
                     std::vector<std::string> names;
                     for (const auto& policy : p.policies) names.push_back(policy.name);
                     return names;
                   })
      .def(
          "policy",
          [](const preset& p, const std::string& spec) {
            return for_router(adaptive_k::parse_policy(spec, p), p.model);
          },
          nb::arg("spec") = "", "Of that name, '' for the default one, or as Policy.parse reads.")
      .def("__repr__", [](const preset& p) { return "<Preset " + p.name + ">"; });
  module.def(
      "list_presets", [] { return adaptive_k::list_presets(); },
      "Every preset that is found, by name: in the folders of ADAPTIVE_K_CALIBRATIONS, then the "
      "package's own.");
  module.def("set_calibrations_folder",
             [](const std::filesystem::path& folder) { calibrations_folder() = folder; });
}

}  // namespace adaptive_k_python

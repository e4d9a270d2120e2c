// A/B tests of policies for Python.
#include <adaptive_k/observability/ab_test.hpp>
#include <array>
#include <utility>

#include "arrays.hpp"
#include "parts.hpp"

namespace adaptive_k_python {
namespace {

using adaptive_k::ab_comparison;
using adaptive_k::ab_effect;
using adaptive_k::ab_metric;
using adaptive_k::ab_results;
using adaptive_k::ab_test;
using adaptive_k::ab_variant;

struct bound_test {
  ab_test test;
  std::vector<ab_variant> variants;
};

std::size_t index_of(const bound_test& test, const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < test.variants.size(); ++i) {
    if (test.variants[i].name == name) return i;
    known += (i == 0 ? "" : ", ") + test.variants[i].name;
  }
  refuse("variant", "'" + name + "', expected one of " + known);
}

}  // namespace

void add_ab_test(nb::module_& module) {
  nb::class_<ab_variant>(module, "Variant", "One arm of an A/B test; the first is the control.")
      .def(
          "__init__",
          [](ab_variant* self, std::string name, double weight, bool shadow) {
            new (self) ab_variant{std::move(name), weight, shadow};
          },
          nb::arg("name"), nb::arg("weight") = 1.0, nb::arg("shadow") = false)
      .def_ro("name", &ab_variant::name)
      .def_ro("weight", &ab_variant::weight)
      .def_ro("shadow", &ab_variant::shadow);
  nb::class_<ab_effect>(module, "Effect")
      .def_ro("control_mean", &ab_effect::control_mean)
      .def_ro("variant_mean", &ab_effect::variant_mean)
      .def_ro("effect", &ab_effect::effect)
      .def_ro("low", &ab_effect::low)
      .def_ro("high", &ab_effect::high)
      .def_ro("sequential_low", &ab_effect::sequential_low)
      .def_ro("sequential_high", &ab_effect::sequential_high)
      .def_ro("welch_p", &ab_effect::welch_p)
      .def_ro("sequential_p", &ab_effect::sequential_p)
      .def_ro("detectable", &ab_effect::detectable)
      .def_ro("found", &ab_effect::found)
      .def_ro("compared", &ab_effect::compared);
  nb::class_<ab_comparison>(module, "Comparison")
      .def_ro("variant", &ab_comparison::variant)
      .def_ro("shadow", &ab_comparison::shadow)
      .def_ro("control_requests", &ab_comparison::control_requests)
      .def_ro("variant_requests", &ab_comparison::variant_requests)
      .def_prop_ro("latency", [](const ab_comparison& c) { return c.of(ab_metric::latency); })
      .def_prop_ro("savings", [](const ab_comparison& c) { return c.of(ab_metric::savings); })
      .def_prop_ro("quality", [](const ab_comparison& c) { return c.of(ab_metric::quality); })
      .def_ro("sentence", &ab_comparison::sentence);
  nb::class_<ab_results>(module, "Results")
      .def_ro("comparisons", &ab_results::comparisons)
      .def_ro("share_mismatch_p", &ab_results::share_mismatch_p)
      .def_ro("sequential_mismatch_p", &ab_results::sequential_mismatch_p)
      .def_ro("trustworthy", &ab_results::trustworthy)
      .def_ro("final", &ab_results::final)
      .def_ro("sentence", &ab_results::sentence)
      .def("__str__", [](const ab_results& r) { return r.sentence; });
  nb::class_<bound_test>(
      module, "ABTest",
      "Assigns requests to variants by a stable hash and says what may be concluded.\n\n"
      "variants: names, the first of them the control, or Variant's. planned_requests 0: results "
      "may "
      "be looked at as often as one likes. Raises ValueError.")
      .def(
          "__init__",
          [](bound_test* self, const std::vector<ab_variant>& variants, std::uint64_t salt,
             double alpha, double power, std::uint64_t planned_requests, double expected_effect) {
            adaptive_k::ab_options options;
            options.salt = salt;
            options.alpha = alpha;
            options.power = power;
            options.planned_requests = planned_requests;
            options.expected_effect = expected_effect;
            require(ab_test(variants, options).validity());
            new (self) bound_test{ab_test(variants, options), variants};
          },
          nb::arg("variants"), nb::kw_only(), nb::arg("salt") = 0, nb::arg("alpha") = 0.05,
          nb::arg("power") = 0.8, nb::arg("planned_requests") = 0,
          nb::arg("expected_effect") = 0.05)
      .def(
          "assign_variant",
          [](const bound_test& self, const std::string& id) {
            return self.variants[self.test.assign_variant(id)].name;
          },
          nb::arg("request_id"),
          "Name of the variant of a request: the same for the same id, on every machine.")
      .def(
          "assign_variant",
          [](const bound_test& self, std::uint64_t id) {
            return self.variants[self.test.assign_variant(id)].name;
          },
          nb::arg("request_id"))
      .def(
          "record",
          [](bound_test& self, const std::string& variant, double latency_seconds,
             double expert_savings, double quality) {
            require(self.test.record(index_of(self, variant),
                                     {latency_seconds, expert_savings, quality}));
          },
          nb::arg("variant"), nb::arg("latency_seconds"), nb::arg("expert_savings"),
          nb::arg("quality"),
          "One request: seconds; share of expert calls saved, 0..1; quality, larger is better.")
      .def(
          "compute_results", [](bound_test& self) { return self.test.compute_results(); },
          "What may be concluded of all records so far.")
      .def_prop_ro("refused_records",
                   [](const bound_test& self) { return self.test.refused_records(); });
}

}  // namespace adaptive_k_python

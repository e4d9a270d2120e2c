// The parts of the module adaptive_k._core; each adds its classes and functions.
#pragma once

#include <adaptive_k/calibration/policy_spec.hpp>
#include <memory>
#include <string>
#include <vector>

#include "nanobind.hpp"

namespace adaptive_k_python {

/// A K policy of one layer that serves all, or one for each, with what owns its tables.
struct bound_policy : adaptive_k::preset_policy {
  /// The router that tables of distortion policies are made for; 0 where there are none.
  int tables_top_k = 0;
  int tables_num_experts = 0;
};

/// Tables of a distortion policy.
struct owned_tables {
  std::vector<float> coefficients;
  std::vector<float> first_expert;
  std::vector<float> next_expert;
};

void add_gating(nb::module_& module);
void add_policies(nb::module_& module);
void add_presets(nb::module_& module);
void add_metrics(nb::module_& module);
void add_router(nb::module_& module);
void add_observability(nb::module_& module);
void add_ab_test(nb::module_& module);
void add_control(nb::module_& module);
void add_calibrator(nb::module_& module);

/// The value of enumeration `Enum` that `to_string` calls `word`; throws ValueError that lists all.
template <class Enum>
Enum enum_of(const char* name, const std::string& word) {
  std::string known;
  for (int i = 0; i < num_values(Enum{}); ++i) {
    const auto value = static_cast<Enum>(i);
    if (word == to_string(value)) return value;
    known += (i == 0 ? "" : ", ") + std::string(to_string(value));
  }
  throw nb::value_error((std::string(name) + ": '" + word + "', expected one of " + known).c_str());
}

}  // namespace adaptive_k_python

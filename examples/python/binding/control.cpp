// The controller of the saving for Python.
#include <adaptive_k/control/savings_controller.hpp>

#include "arrays.hpp"
#include "parts.hpp"

namespace adaptive_k_python {
namespace {

using adaptive_k::controller_state;
using adaptive_k::savings_controller;

nb::dict to_dict(const controller_state& state) {
  nb::dict d;
  d["scale"] = state.scale;
  d["expert_calls"] = state.expert_calls;
  d["full_expert_calls"] = state.full_expert_calls;
  d["tokens"] = state.tokens;
  d["phase"] = state.phase;
  d["reversals"] = state.reversals;
  d["last_scale"] = state.last_scale;
  d["last_error"] = state.last_error;
  d["other_scale"] = state.other_scale;
  d["other_error"] = state.other_error;
  return d;
}

template <class Value>
void read(const nb::dict& from, const char* field, Value& value) {
  if (!from.contains(field)) refuse(field, "is missing from the controller's state");
  if (!nb::try_cast(from[field], value))
    refuse(field, std::string(nb::repr(from[field]).c_str()) + ", expected " +
                      (std::is_integral_v<Value> ? "an integer" : "a number"));
}

controller_state from_dict(const nb::dict& d) {
  controller_state state;
  read(d, "scale", state.scale);
  read(d, "expert_calls", state.expert_calls);
  read(d, "full_expert_calls", state.full_expert_calls);
  read(d, "tokens", state.tokens);
  read(d, "phase", state.phase);
  read(d, "reversals", state.reversals);
  read(d, "last_scale", state.last_scale);
  read(d, "last_error", state.last_error);
  read(d, "other_scale", state.other_scale);
  read(d, "other_error", state.other_error);
  return state;
}

}  // namespace

void add_control(nb::module_& module) {
  nb::class_<savings_controller>(
      module, "SavingsController",
      "Holds a share of expert calls saved while the input drifts: `scale` multiplies a policy, by "
      "Policy.scaled.\n\n"
      "expert_savings in (0, 1); hysteresis: off by no more, nothing moves; decision_tokens: "
      "summed "
      "over layers. Equal metrics in equal order give equal scales. Raises ValueError.")
      .def(
          "__init__",
          [](savings_controller* self, double expert_savings, double hysteresis,
             std::uint64_t decision_tokens, double gain, double lowest_scale,
             double highest_scale) {
            const savings_controller made(
                {expert_savings, hysteresis, decision_tokens, gain, lowest_scale, highest_scale});
            require(made.validity());
            new (self) savings_controller(made);
          },
          nb::arg("expert_savings"), nb::kw_only(), nb::arg("hysteresis") = 0.002,
          nb::arg("decision_tokens") = 4096, nb::arg("gain") = 6.0,
          nb::arg("lowest_scale") = 1.0 / 16.0, nb::arg("highest_scale") = 16.0)
      .def(
          "observe",
          [](savings_controller& self, const adaptive_k::routing_metrics& since_last) {
            return self.observe(since_last);
          },
          nb::arg("since_last"), "Adds what was routed since the last call; True: scale has moved.")
      .def_prop_ro("scale", &savings_controller::scale)
      .def_prop_ro("at_bound", &savings_controller::at_bound,
                   "The target cannot be met within the bounds of the scale.")
      .def_prop_ro("at_jump", &savings_controller::at_jump,
                   "No scale meets the target: it rests at the nearer side.")
      .def(
          "retarget",
          [](savings_controller& self, double expert_savings) {
            require(self.retarget(expert_savings));
          },
          nb::arg("expert_savings"))
      .def(
          "state", [](const savings_controller& self) { return to_dict(self.state()); },
          "All that `resume` needs, as numbers by name: for a file of JSON.")
      .def(
          "resume",
          [](savings_controller& self, const nb::dict& state) {
            require(self.resume(from_dict(state)));
          },
          nb::arg("state"), "Goes on from a stored state. Raises ValueError, and stays as it was.");
}

}  // namespace adaptive_k_python

// The router and its metrics for Python.
#include <adaptive_k/host/metrics.hpp>
#include <adaptive_k/host/route_in_threads.hpp>
#include <adaptive_k/host/router.hpp>
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <utility>

#include "arrays.hpp"
#include "parts.hpp"

namespace adaptive_k_python {
namespace {

using adaptive_k::fill_id;
using adaptive_k::gating;
using adaptive_k::router;
using adaptive_k::routing_metrics;
using optional_array = std::optional<input_array>;
using optional_target = std::optional<output_array>;

fill_id fill_of(const std::string& word) {
  if (word == "minus_one") return fill_id::minus_one;
  if (word == "num_experts") return fill_id::num_experts;
  if (word == "first_expert") return fill_id::first_expert;
  refuse("fill", "'" + word + "', expected one of minus_one, num_experts, first_expert");
}

adaptive_k::instruction_set instructions_of(const std::string& word) {
  using adaptive_k::instruction_set;
  std::string known;
  for (const instruction_set each :
       {instruction_set::best, instruction_set::scalar, instruction_set::generic,
        instruction_set::avx2, instruction_set::avx512}) {
    if (word == adaptive_k::name_of(each)) return each;
    known += (known.empty() ? "" : ", ") + std::string(adaptive_k::name_of(each));
  }
  refuse("instructions", "'" + word + "', expected one of " + known);
}

router make_router(const gating& model, const bound_policy& policy, const std::string& fill,
                   const std::string& instructions) {
  const bool has_tables = std::any_of(
      policy.layers.begin(), policy.layers.end(),
      [](const adaptive_k::k_policy& p) { return p.rule == adaptive_k::k_rule::distortion; });
  if (has_tables &&
      (policy.tables_top_k != model.top_k || policy.tables_num_experts != model.num_experts))
    refuse("policy", "'" + policy.name +
                         "' has tables for top_k = " + std::to_string(policy.tables_top_k) +
                         " of " + std::to_string(policy.tables_num_experts) +
                         " experts, expected those of the gating: " + std::to_string(model.top_k) +
                         " of " + std::to_string(model.num_experts));
  adaptive_k::router_options options;
  options.fill = fill_of(fill);
  options.instructions = instructions_of(instructions);
  // One that serves every layer takes no tables along: `policy` lives as long as its router.
  router made = policy.layers.size() == 1 ? router(model, policy.layers[0], options)
                                          : router(model, policy.layers, options, policy.tables);
  require(made.validity());
  return made;
}

/// What a call reads beside its logits.
struct call_inputs {
  optional_array routing_bias;
  optional_array padding_mask;
  optional_array k_min;
  optional_array k_max;

  adaptive_k::routing_extras extras(const gating& model, std::int64_t num_tokens) const {
    adaptive_k::routing_extras extras;
    extras.routing_bias =
        optional_input<float>("routing_bias", routing_bias, model.num_experts, "float32");
    extras.padding_mask =
        optional_input<std::uint8_t>("padding_mask", padding_mask, num_tokens, "uint8 or bool");
    extras.k_min = optional_input<std::uint8_t>("k_min", k_min, num_tokens, "uint8");
    extras.k_max = optional_input<std::uint8_t>("k_max", k_max, num_tokens, "uint8");
    return extras;
  }
};

/// One serving policy may be called for any layer; several for those alone. Both by `layer`.
void route(const router& self, int layer, const input_array& logits, const output_array& ids,
           const output_array& weights, const optional_target& counts,
           const optional_target& signal, const optional_target& chosen,
           const optional_target& expert_counts, const optional_array& routing_bias,
           const optional_array& padding_mask, const optional_array& k_min,
           const optional_array& k_max, routing_metrics* metrics, bool logits_are_bf16,
           bool weights_are_bf16, int num_threads) {
  const gating& model = self.model();
  const float_type logit_type = float_type_of("logits", logits.dtype(), logits_are_bf16);
  const float_type weight_type = float_type_of("weights", weights.dtype(), weights_are_bf16);
  const std::int64_t stride = require_matrix("logits", logits, -1, model.num_experts, false);
  const auto tokens = static_cast<std::int64_t>(logits.shape(0));
  require_matrix("ids", ids, tokens, model.top_k, true);
  require_matrix("weights", weights, tokens, model.top_k, true);
  if (num_threads < 1) refuse("num_threads", std::to_string(num_threads) + ", expected 1 or more");
  const adaptive_k::routing_extras extras =
      call_inputs{routing_bias, padding_mask, k_min, k_max}.extras(model, tokens);
  adaptive_k::status result;
  routing_metrics counted;
  with_float_type(logit_type, [&](auto* logit) {
    with_float_type(weight_type, [&](auto* weight) {
      with_id_type("ids", ids.dtype(), [&](auto* id) {
        using logit_value = std::remove_pointer_t<decltype(logit)>;
        using weight_value = std::remove_pointer_t<decltype(weight)>;
        using expert_id = std::remove_pointer_t<decltype(id)>;
        const adaptive_k::logits_view<logit_value> view = {
            static_cast<const logit_value*>(logits.data()), tokens, model.num_experts, stride};
        adaptive_k::routing_output<expert_id, weight_value> output;
        output.topk_ids = static_cast<expert_id*>(ids.data());
        output.topk_weights = static_cast<weight_value*>(weights.data());
        output.topk_counts = optional_output<std::int32_t>("counts", counts, tokens, "int32");
        output.signal = optional_output<float>("signal", signal, tokens, "float32");
        output.chosen_counts = optional_output<std::int32_t>("chosen", chosen, tokens, "int32");
        output.expert_counts = optional_output<std::uint64_t>("expert_counts", expert_counts,
                                                              model.num_experts, "uint64");
        const nb::gil_scoped_release released;
        result =
            adaptive_k::route_in_threads(self, num_threads, layer, view, output, &counted, extras);
      });
    });
  });
  require(result);
  if (metrics != nullptr) *metrics += counted;  // under the GIL: the caller may share the struct
}

/// Ranks of a token's own slots by the library's order of its experts: rank[slot] in 0..top_k-1.
/// Ids that only the engine chose (a tie at the end) come behind, in the engine's order.
template <class Id>
void rank_slots(const Id* own, const std::int32_t* ranked, int top_k, int* rank) {
  int behind = 0;
  bool taken[adaptive_k::max_top_k] = {};
  for (int slot = 0; slot < top_k; ++slot) {
    rank[slot] = -1;
    for (int j = 0; j < top_k && rank[slot] < 0; ++j)
      if (!taken[j] && static_cast<std::int64_t>(own[slot]) == ranked[j]) {
        rank[slot] = j;
        taken[j] = true;
      }
  }
  for (int slot = 0; slot < top_k; ++slot)
    if (rank[slot] < 0) rank[slot] = adaptive_k::max_top_k + behind++;
}

/// What an engine that has routed already keeps of its own choice. See Router.keep.
void keep(const router& self, int layer, const input_array& logits, const input_array& ids,
          const output_array& kept, const output_array& factor, const output_array& counts,
          const optional_target& signal, const optional_array& routing_bias,
          const optional_array& padding_mask, const optional_array& k_min,
          const optional_array& k_max, routing_metrics* metrics, bool shadow) {
  const gating& model = self.model();
  const int top_k = model.top_k;
  const float_type logit_type = float_type_of("logits", logits.dtype(), false);
  const std::int64_t stride = require_matrix("logits", logits, -1, model.num_experts, false);
  const auto tokens = static_cast<std::int64_t>(logits.shape(0));
  require_matrix("ids", ids, tokens, top_k, true);
  require_matrix("kept", kept, tokens, top_k, true);
  if (static_cast<int>(kept.dtype().code) != 6 || kept.dtype().bits != 8)
    refuse("kept", "is of " + name_of(kept.dtype()) + ", expected bool");
  const optional_target factors(factor), wanted_counts(counts);
  auto* const stretch = optional_output<float>("factor", factors, tokens, "float32");
  auto* const k = optional_output<std::int32_t>("counts", wanted_counts, tokens, "int32");
  auto* const signals = optional_output<float>("signal", signal, tokens, "float32");
  auto* const keeps = static_cast<std::uint8_t*>(kept.data());
  const adaptive_k::routing_extras extras =
      call_inputs{routing_bias, padding_mask, k_min, k_max}.extras(model, tokens);
  const auto slots = static_cast<std::size_t>(tokens * top_k);
  std::vector<std::int32_t> own_ids(slots);
  std::vector<float> unread(slots);
  adaptive_k::status result;
  routing_metrics counted;
  with_float_type(logit_type, [&](auto* logit) {
    using logit_value = std::remove_pointer_t<decltype(logit)>;
    const adaptive_k::logits_view<logit_value> view = {
        static_cast<const logit_value*>(logits.data()), tokens, model.num_experts, stride};
    with_id_type("ids", ids.dtype(), [&](auto* id) {
      using expert_id = std::remove_pointer_t<decltype(id)>;
      const auto* engine_ids = static_cast<const expert_id*>(ids.data());
      const nb::gil_scoped_release released;
      adaptive_k::routing_output<> output = {own_ids.data(), unread.data(), k, signals};
      output.weight_factors = stretch;
      std::vector<std::int32_t> ran;
      if (shadow) {  // counts are what the policy would have taken
        ran.resize(static_cast<std::size_t>(tokens));
        output.topk_counts = ran.data();
        output.chosen_counts = k;
      }
      result = self.route(layer, view, output, &counted, extras);
      if (!result.ok()) return;
      if (shadow) {
        std::fill(keeps, keeps + slots, std::uint8_t{1});
        return;
      }
      int rank[adaptive_k::max_top_k];
      for (std::int64_t t = 0; t < tokens; ++t) {
        const auto first = static_cast<std::size_t>(t * top_k);
        rank_slots(engine_ids + t * top_k, own_ids.data() + first, top_k, rank);
        for (int slot = 0; slot < top_k; ++slot) {
          int better = 0;
          for (int other = 0; other < top_k; ++other) better += rank[other] < rank[slot] ? 1 : 0;
          keeps[first + static_cast<std::size_t>(slot)] = better < k[t] ? 1 : 0;
        }
      }
    });
  });
  require(result);
  if (metrics != nullptr) *metrics += counted;
}

nb::dict to_dict(const routing_metrics& m, int top_k) {
  nb::dict d;
  d["calls"] = m.calls;
  d["tokens"] = m.tokens;
  d["padding_tokens"] = m.padding_tokens;
  d["expert_calls"] = m.expert_calls;
  d["full_expert_calls"] = m.full_expert_calls;
  d["expert_savings"] = m.expert_savings();
  d["mean_k"] = m.mean_k();
  d["mean_signal"] = m.mean_signal();
  d["signal_lowest"] = m.signal_lowest;
  d["signal_highest"] = m.signal_highest;
  d["nonfinite_rows"] = m.nonfinite_rows;
  d["super_expert_tokens"] = m.super_expert_tokens;
  d["out_of_domain"] = m.out_of_domain;
  d["distinct_experts"] = m.distinct_experts;
  d["shadow_expert_savings"] = m.shadow_expert_savings();
  nb::list histogram;
  const int last = top_k > 0 ? std::min(top_k, adaptive_k::max_top_k) : adaptive_k::max_top_k;
  for (int k = 0; k <= last; ++k) histogram.append(m.k_histogram[k]);
  d["k_histogram"] = histogram;
  return d;
}

}  // namespace

void add_metrics(nb::module_& module) {
  nb::class_<routing_metrics>(
      module, "Metrics",
      "Counters of routing calls; they add up over batches, layers, threads and ranks with +=.")
      .def(nb::init<>())
      .def_ro("calls", &routing_metrics::calls, "Routing calls with at least one token.")
      .def_ro("tokens", &routing_metrics::tokens, "Routed tokens, padding left out.")
      .def_ro("padding_tokens", &routing_metrics::padding_tokens)
      .def_ro("expert_calls", &routing_metrics::expert_calls, "Sum of k.")
      .def_ro("full_expert_calls", &routing_metrics::full_expert_calls, "Sum of top_k.")
      .def_ro("nonfinite_rows", &routing_metrics::nonfinite_rows)
      .def_ro("shadow_expert_calls", &routing_metrics::shadow_expert_calls,
              "Sum of the k that calls in shadow mode would have taken.")
      .def_ro("shadow_full_expert_calls", &routing_metrics::shadow_full_expert_calls,
              "Sum of top_k of those calls.")
      .def_ro("out_of_domain", &routing_metrics::out_of_domain,
              "Tokens that do not look like those that the policy was calibrated on.")
      .def_ro(
          "super_expert_tokens", &routing_metrics::super_expert_tokens,
          "Tokens that got more experts than the rule says, as super experts are never dropped.")
      .def_ro("distinct_experts", &routing_metrics::distinct_experts)
      .def_ro("signal_lowest", &routing_metrics::signal_lowest)
      .def_ro("signal_highest", &routing_metrics::signal_highest)
      .def_ro("signal_sum_fixed", &routing_metrics::signal_sum_fixed,
              "Low word of the sum of signals, in steps of 2^-24.")
      .def_prop_ro("expert_savings", &routing_metrics::expert_savings,
                   "1 - sum k / sum top_k, in [0, 1): against the model's own top-k.")
      .def_prop_ro("shadow_expert_savings", &routing_metrics::shadow_expert_savings)
      .def_prop_ro("mean_k", &routing_metrics::mean_k)
      .def_prop_ro("mean_signal", &routing_metrics::mean_signal, "In the signal's own unit.")
      .def_prop_ro("mean_distinct_experts", &routing_metrics::mean_distinct_experts)
      .def_prop_ro(
          "k_histogram",
          [](const routing_metrics& m) {
            return std::vector<std::uint64_t>(std::begin(m.k_histogram), std::end(m.k_histogram));
          },
          "Tokens by k, 0..32.")
      .def("to_dict", &to_dict, nb::arg("top_k") = 0)
      .def(
          "__iadd__",
          [](routing_metrics& a, const routing_metrics& b) -> routing_metrics& { return a += b; },
          nb::rv_policy::none)
      .def("__add__",
           [](const routing_metrics& a, const routing_metrics& b) {
             routing_metrics sum = a;
             return sum += b;
           })
      .def("__copy__", [](const routing_metrics& m) { return m; })
      .def("__getstate__",
           [](const routing_metrics& m) {
             return nb::bytes(reinterpret_cast<const char*>(&m), sizeof m);
           })
      .def("__setstate__",
           [](routing_metrics& m, const nb::bytes& state) {
             if (state.size() != sizeof m)
               throw nb::value_error("Metrics: a state of another version of adaptive_k");
             new (&m) routing_metrics();
             std::memcpy(static_cast<void*>(&m), state.c_str(), sizeof m);
           })
      .def("__repr__", [](const routing_metrics& m) {
        return "<Metrics: " + std::to_string(m.tokens) + " tokens, mean K " +
               adaptive_k::detail::shortest(static_cast<float>(m.mean_k())) + ", saved " +
               adaptive_k::detail::shortest(static_cast<float>(m.expert_savings())) + ">";
      });
}

void add_router(nb::module_& module) {
  nb::class_<router>(module, "Router")
      .def(
          "__init__",
          [](router* self, const gating& model, const bound_policy& policy, const std::string& fill,
             const std::string& instructions) {
            new (self) router(make_router(model, policy, fill, instructions));
          },
          nb::keep_alive<1, 3>())
      .def_prop_ro("gating", [](const router& r) { return r.model(); })
      .def_prop_ro("num_layers", &router::num_layers)
      .def_prop_ro("instructions",
                   [](const router& r) { return std::string(name_of(r.instructions())); })
      .def("route", &route, nb::arg("layer"), nb::arg("logits"), nb::arg("ids"), nb::arg("weights"),
           nb::arg("counts") = nb::none(), nb::arg("signal") = nb::none(),
           nb::arg("chosen") = nb::none(), nb::arg("expert_counts") = nb::none(),
           nb::arg("routing_bias") = nb::none(), nb::arg("padding_mask") = nb::none(),
           nb::arg("k_min") = nb::none(), nb::arg("k_max") = nb::none(),
           nb::arg("metrics") = nb::none(), nb::arg("logits_are_bf16") = false,
           nb::arg("weights_are_bf16") = false, nb::arg("num_threads") = 1)
      .def("keep", &keep, nb::arg("layer"), nb::arg("logits"), nb::arg("ids"), nb::arg("kept"),
           nb::arg("factor"), nb::arg("counts"), nb::arg("signal") = nb::none(),
           nb::arg("routing_bias") = nb::none(), nb::arg("padding_mask") = nb::none(),
           nb::arg("k_min") = nb::none(), nb::arg("k_max") = nb::none(),
           nb::arg("metrics") = nb::none(), nb::arg("shadow") = false);
}

}  // namespace adaptive_k_python

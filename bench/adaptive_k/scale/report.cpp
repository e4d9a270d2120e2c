#include <fmt/format.h>
#include <adaptive_k/calibration/format/printable.hpp>

#include <string>

#include "bench/adaptive_k/measure/facts.hpp"
#include "bench/adaptive_k/output/text_table.hpp"
#include "bench/adaptive_k/scale/run.hpp"

namespace bench {
namespace {

using json = nlohmann::ordered_json;

const char* name_of(token_order order) {
  return order == token_order::decode ? "decode" : "prefill";
}

const char* name_of(expert_parallel::dispatch_form form) {
  return form == expert_parallel::dispatch_form::each_pair ? "each_pair" : "once_a_rank";
}

/// The row that this one's time is compared with: full K, contiguous, on as many ranks.
const scale_row& full_of(const scale_result& result, const scale_row& row) {
  for (const scale_row& candidate : result.rows)
    if (candidate.ranks == row.ranks) return candidate;  // it comes first
  return row;
}

}  // namespace

json to_json(const scale_result& result, const scale_options& options) {
  json report = report_header("adaptive_k.scale");
  model_facts model;
  model.name = result.trace.model;
  model.path = options.trace;
  model.num_layers = result.trace.num_layers;
  model.gating = result.trace.gating;
  report["model"] = model_json(model);
  report["dataset"] = {{"path", result.trace.dataset},
                       {"sha256", result.trace.dataset_sha256},
                       {"tokens", result.trace.num_tokens},
                       {"window", result.trace.window}};
  report["policy"] = {{"name", result.policy.policy.name}, {"origin", result.policy.origin}};
  report["tokens_of_rank"] = options.tokens_of_rank;
  report["order"] = name_of(options.order);
  report["dispatch"] = name_of(options.form);
  report["sizes"] = {{"origin", result.sizes_of},
                     {"hidden", result.sizes.expert.hidden},
                     {"intermediate", result.sizes.expert.intermediate},
                     {"matrices", result.sizes.expert.matrices},
                     {"bytes_per_value", result.sizes.bytes_per_value},
                     {"bytes_per_weight", result.sizes.expert.bytes_per_weight}};
  report["assumed_machine"] = {{"link_bytes_per_s", options.machine.link_bytes_per_s},
                               {"latency_s", options.machine.latency_s},
                               {"flops", options.machine.flops},
                               {"memory_bytes_per_s", options.machine.memory_bytes_per_s}};
  report["rows"] = json::array();
  for (const scale_row& row : result.rows)
    report["rows"].push_back({{"ranks", row.ranks},
                              {"routing", row.routing},
                              {"placement", row.placement},
                              {"slots", row.slots},
                              {"steps", row.steps},
                              {"mean_k", row.mean_k},
                              {"rows_of_rank", row.rows},
                              {"bytes_of_rank", row.bytes},
                              {"once_rows_of_rank", row.once_rows},
                              {"once_bytes_of_rank", row.once_bytes},
                              {"largest_bytes_of_rank", row.largest_bytes},
                              {"largest_load", row.largest_load},
                              {"worst_load", row.worst_load},
                              {"experts_read", row.experts_read},
                              {"modelled_seconds", row.seconds},
                              {"modelled_overlapped_seconds", row.overlapped_seconds}});
  return report;
}

void print(const scale_result& result, const scale_options& options) {
  const adaptive_k::gating& gating = result.trace.gating;
  fmt::print("{}: {} experts of which {}, {} layers; policy {} ({})\n",
             adaptive_k::detail::printable(result.trace.model, 200), gating.num_experts,
             gating.top_k, result.trace.num_layers, result.policy.policy.name,
             result.policy.origin);
  fmt::print(
      "{} tokens a rank and step, {}; sizes {}: hidden {}, intermediate {}, {} bytes a "
      "value, {:g} a weight\n",
      options.tokens_of_rank, name_of(options.order), result.sizes_of, result.sizes.expert.hidden,
      result.sizes.expert.intermediate, result.sizes.bytes_per_value,
      result.sizes.expert.bytes_per_weight);
  const rank_machine& machine = options.machine;
  fmt::print(
      "Times are modelled, on assumed machines: link {:g} GB/s, {:g} us an exchange, "
      "{:g} TFLOP/s, memory {:g} GB/s; dispatch {}\n\n",
      machine.link_bytes_per_s / 1e9, machine.latency_s * 1e6, machine.flops / 1e12,
      machine.memory_bytes_per_s / 1e9, name_of(options.form));
  text_table table({"ranks", "<routing", "<placement", "mean K", "a rank sends", "once a rank",
                    "largest load", "experts read", "step us", "overlapped", "of full K"});
  for (const scale_row& row : result.rows)
    table.add_row(
        {std::to_string(row.ranks), row.routing, row.placement, fmt::format("{:.3f}", row.mean_k),
         bytes_text(row.bytes), bytes_text(row.once_bytes), fmt::format("{:.2f}", row.largest_load),
         fmt::format("{:.2f}", row.experts_read), fmt::format("{:.1f}", row.seconds * 1e6),
         fmt::format("{:.1f}", row.overlapped_seconds * 1e6),
         fmt::format("{:.0f}%", 100.0 * row.seconds / full_of(result, row).seconds)});
  fmt::print("{}", table.text());
}

}  // namespace bench

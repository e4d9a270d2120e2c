#include "bench/adaptive_k/scale/run.hpp"

#include <fmt/format.h>
#include <adaptive_k/control/expert_budget.hpp>
#include <adaptive_k/host/router.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/progress.hpp"

namespace bench {
namespace {

using expert_parallel::dispatch_form;
using expert_parallel::placement;

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

/// A routing of the whole trace, of which rows of the report are made.
struct routing {
  std::string name;
  adaptive_k::router router;
  int budget = 0;
};

std::vector<int> ranks_for(const scale_options& options, std::int64_t tokens) {
  std::vector<int> ranks = options.ranks;
  if (ranks.empty())
    for (int usual = 8; usual <= 256; usual *= 2)
      if (usual * options.tokens_of_rank <= tokens) ranks.push_back(usual);
  for (const int number : ranks)
    if (number * options.tokens_of_rank > tokens)
      throw failure(fmt::format(
          "--tokens: {} on {} ranks, expected at most {} in all, the second half of the trace",
          options.tokens_of_rank, number, tokens));
  if (ranks.empty())
    throw failure(fmt::format(
        "--tokens: {} on 8 ranks, expected at most {} in all, the second half of the trace",
        options.tokens_of_rank, tokens));
  return ranks;
}

call_sizes sizes_for(const scale_options& options, const trace_info& info,
                     const std::optional<adaptive_k::preset>& preset, const std::string& note,
                     std::string& origin) {
  call_sizes sizes;
  sizes.top_k = info.gating.top_k;
  sizes.bytes_per_value = options.bytes_per_value;
  if (preset) sizes.expert = preset->sizes;
  if (options.hidden != 0) sizes.expert.hidden = options.hidden;
  if (options.intermediate != 0) sizes.expert.intermediate = options.intermediate;
  sizes.expert.bytes_per_weight = options.bytes_per_weight;
  if (sizes.expert.hidden == 0 || sizes.expert.intermediate == 0)
    throw failure(fmt::format("--hidden and --intermediate: are needed, as {}", note));
  origin = options.hidden != 0 || options.intermediate != 0 ? "as given" : "of the preset";
  return sizes;
}

placement placed_by_load(const std::vector<std::uint64_t>& loads, int ranks, int redundant) {
  placement where = placement::contiguous(1, 1);
  const adaptive_k::status placed = placement::by_load(loads, ranks, redundant, &where);
  if (!placed.ok()) throw failure(fmt::format("--redundant: {}", placed.message()));
  return where;
}

/// Adds one layer's calls to the row.
void add_calls(const routed_layer& layer, const placement& where, const trace_info& info,
               const scale_options& options, const call_sizes& sizes, int budget, scale_row& row) {
  const int top_k = info.gating.top_k;
  const auto per_step = 1.0 / (static_cast<double>(row.steps));
  const double per_rank = per_step / row.ranks;
  const double per_call = per_step / info.num_layers;
  const bool once = options.form == dispatch_form::once_a_rank;
  routed_layer held;
  for (std::int64_t step = 0; step < row.steps; ++step) {
    const auto tokens = tokens_of_step(layer, top_k, info.gating.num_experts, row.ranks,
                                       options.tokens_of_rank, step, budget, &held);
    const call_figures call = figures_of_call(where, tokens, sizes, options.machine, options.form);
    double rows = 0.0, largest_rows = 0.0, largest_bytes = 0.0;
    for (const rank_figures& rank : call.ranks) {
      row.rows += static_cast<double>(rank.pairs.rows) * per_rank;
      row.bytes += static_cast<double>(rank.pairs.bytes()) * per_rank;
      row.once_rows += static_cast<double>(rank.once.rows) * per_rank;
      row.once_bytes += static_cast<double>(rank.once.bytes()) * per_rank;
      row.experts_read += rank.slots * per_call / row.ranks;
      const auto run = static_cast<double>(rank.own_rows + rank.arriving_rows);
      rows += run;
      largest_rows = std::max(largest_rows, run);
      largest_bytes =
          std::max(largest_bytes, static_cast<double>((once ? rank.once : rank.pairs).bytes()));
    }
    const double load = rows > 0.0 ? largest_rows * row.ranks / rows : 1.0;
    row.mean_k += rows * per_call / static_cast<double>(row.ranks * options.tokens_of_rank);
    row.largest_bytes += largest_bytes * per_step;
    row.largest_load += load * per_call;
    row.worst_load = std::max(row.worst_load, load);
    row.seconds += call.seconds * per_step;
    row.overlapped_seconds += call.overlapped_seconds * per_step;
  }
}

}  // namespace

std::vector<std::int64_t> dealt_rows(const trace_info& info, token_order order) {
  const std::int64_t windows = info.num_tokens / info.window;
  const std::int64_t first = windows / 2, count = windows - first;
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < count * info.window; ++i)
    rows.push_back(order == token_order::decode ? (first + i % count) * info.window + i / count
                                                : first * info.window + i);
  return rows;
}

routed_layer route_dealt(const trace_reader& trace, int layer, const adaptive_k::router& router,
                         const std::vector<std::int64_t>& rows) {
  const trace_info& info = trace.info();
  const int top_k = info.gating.top_k;
  const std::vector<float> bias = trace.selection_bias(layer);
  adaptive_k::routing_extras extras;
  if (!bias.empty()) extras.routing_bias = bias.data();
  routed_layer all;
  all.ids.resize(at(info.num_tokens * top_k));
  all.weights.resize(all.ids.size());
  all.counts.resize(at(info.num_tokens));
  routed_layer dealt;
  dealt.loads.resize(at(info.gating.num_experts));
  const std::int64_t half = info.num_tokens / info.window / 2 * info.window;
  const std::int64_t at_once = std::int64_t{1} << 16;
  for (std::int64_t first = 0; first < info.num_tokens; first += at_once) {
    const std::int64_t count = std::min(at_once, info.num_tokens - first);
    const std::vector<float> logits = trace.logits(layer, first, count);
    const adaptive_k::status routed = router.route(
        layer, adaptive_k::logits_view<float>{logits.data(), count, info.gating.num_experts, 0},
        adaptive_k::routing_output<>{all.ids.data() + first * top_k,
                                     all.weights.data() + first * top_k, all.counts.data() + first},
        nullptr, extras);
    if (!routed.ok()) throw failure(routed.message());
  }
  for (std::int64_t t = 0; t < half; ++t)
    for (std::int64_t j = t * top_k; j < t * top_k + all.counts[at(t)]; ++j)
      ++dealt.loads[at(all.ids[at(j)])];
  for (const std::int64_t row : rows) {
    const auto from = static_cast<std::ptrdiff_t>(row * top_k);
    dealt.ids.insert(dealt.ids.end(), all.ids.begin() + from, all.ids.begin() + from + top_k);
    dealt.weights.insert(dealt.weights.end(), all.weights.begin() + from,
                         all.weights.begin() + from + top_k);
    dealt.counts.push_back(all.counts[at(row)]);
  }
  return dealt;
}

std::vector<expert_parallel::routed_tokens> tokens_of_step(const routed_layer& layer, int top_k,
                                                           int num_experts, int ranks,
                                                           std::int64_t tokens_of_rank,
                                                           std::int64_t step, int budget,
                                                           routed_layer* held) {
  const std::int64_t count = ranks * tokens_of_rank, first = step * count;
  const std::int32_t* ids = layer.ids.data() + first * top_k;
  const std::int32_t* counts = layer.counts.data() + first;
  if (budget != 0) {
    held->ids.assign(ids, ids + count * top_k);
    held->counts.assign(counts, counts + count);
    const float* weights = layer.weights.data() + first * top_k;
    held->weights.assign(weights, weights + count * top_k);
    std::vector<std::uint64_t> mass(at(num_experts));
    std::vector<std::uint8_t> admitted(at(num_experts));
    for (int rank = 0; rank < ranks; ++rank) {
      const std::int64_t of_rank = rank * tokens_of_rank;
      const adaptive_k::status restricted = adaptive_k::restrict_to_budget(
          held->ids.data() + of_rank * top_k, held->weights.data() + of_rank * top_k,
          held->counts.data() + of_rank, tokens_of_rank, top_k, num_experts, 1, budget,
          {mass.data(), admitted.data()});
      if (!restricted.ok()) throw failure(restricted.message());
    }
    ids = held->ids.data();
    counts = held->counts.data();
  }
  std::vector<expert_parallel::routed_tokens> tokens;
  for (int rank = 0; rank < ranks; ++rank)
    tokens.push_back(
        {ids + rank * tokens_of_rank * top_k, counts + rank * tokens_of_rank, tokens_of_rank});
  return tokens;
}

scale_result run_scale(const scale_options& options, file_roles& roles) {
  const trace_reader trace(options.trace);
  scale_result result;
  const trace_info& info = result.trace = trace.info();
  std::string note;
  const auto preset = find_preset({info.model}, info.gating, note);
  if (preset) roles.reads("model's preset", preset->file);
  result.sizes = sizes_for(options, info, preset, note, result.sizes_of);
  result.policy = choose_policy(options.policy, info.gating, info.num_layers, preset);
  if (options.budget > info.gating.num_experts)
    throw failure(fmt::format("--budget: {}, expected 1..{}, the model's experts", options.budget,
                              info.gating.num_experts));
  const std::vector<std::int64_t> rows = dealt_rows(info, options.order);
  const std::vector<int> ranks = ranks_for(options, static_cast<std::int64_t>(rows.size()));

  const auto router_of = [&](const std::vector<adaptive_k::k_policy>& layers) {
    return adaptive_k::router(info.gating, layers, {}, result.policy.policy.tables);
  };
  const auto fixed = [&](int k) {
    return router_of(std::vector<adaptive_k::k_policy>(
        at(info.num_layers),
        k == info.gating.top_k ? adaptive_k::k_policy::full() : adaptive_k::k_policy::fixed(k)));
  };
  std::vector<routing> routings;
  routings.push_back({"full K", fixed(info.gating.top_k)});
  routings.push_back({result.policy.policy.name,
                      router_of(layer_policies(result.policy.policy, info.num_layers))});
  // The control: the whole K that is nearest to the policy's mean.
  double calls = 0.0;
  for (int layer = 0; layer < info.num_layers; ++layer)
    for (const std::int32_t k : route_dealt(trace, layer, routings[1].router, rows).counts)
      calls += k;
  const double mean_k = calls / (static_cast<double>(rows.size()) * info.num_layers);
  const int nearest = std::clamp(static_cast<int>(mean_k + 0.5), 1, info.gating.top_k);
  routings.push_back({fmt::format("fixed K = {}", nearest), fixed(nearest)});
  if (options.budget != 0)
    routings.push_back({fmt::format("{}, budget {}", routings[1].name, options.budget),
                        routings[1].router, options.budget});

  std::vector<std::size_t> routing_of;  // of each row
  for (const int number : ranks)
    for (const routing& each : routings)
      for (const bool by_load : {false, true}) {
        if (by_load && options.redundant == 0) continue;
        scale_row row;
        row.ranks = number;
        row.routing = each.name;
        row.placement =
            by_load ? fmt::format("by load, {} copies", options.redundant) : "contiguous";
        row.steps = static_cast<std::int64_t>(rows.size()) / (number * options.tokens_of_rank);
        result.rows.push_back(row);
        routing_of.push_back(static_cast<std::size_t>(&each - routings.data()));
      }
  progress line("scale", static_cast<std::int64_t>(routings.size()) * info.num_layers);
  std::int64_t done = 0;
  for (std::size_t i = 0; i < routings.size(); ++i)
    for (int layer = 0; layer < info.num_layers; ++layer) {
      const routed_layer routed = route_dealt(trace, layer, routings[i].router, rows);
      for (std::size_t r = 0; r < result.rows.size(); ++r) {
        if (routing_of[r] != i) continue;
        scale_row& row = result.rows[r];
        const placement where = row.placement == "contiguous"
                                    ? placement::contiguous(info.gating.num_experts, row.ranks)
                                    : placed_by_load(routed.loads, row.ranks, options.redundant);
        row.slots = where.num_slots();
        add_calls(routed, where, info, options, result.sizes, routings[i].budget, row);
      }
      line.update(++done);
    }
  return result;
}

}  // namespace bench

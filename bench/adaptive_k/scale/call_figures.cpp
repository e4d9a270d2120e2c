#include "bench/adaptive_k/scale/call_figures.hpp"

#include <algorithm>
#include <cstddef>

namespace bench {
namespace {

using expert_parallel::dispatch_form;
using expert_parallel::placement;

/// Seconds of one rank's parts of a call.
struct rank_times {
  double out = 0.0;       ///< dispatch: what it sends or receives, whichever is more
  double back = 0.0;      ///< likewise
  double all = 0.0;       ///< its experts on all rows
  double own = 0.0;       ///< on its own tokens' rows
  double arriving = 0.0;  ///< on the others'
};

rank_times times_of(const rank_figures& rank, const placement& where, int index,
                    const call_sizes& sizes, const rank_machine& machine, dispatch_form form) {
  const bool once = form == dispatch_form::once_a_rank;
  const expert_parallel::traffic& sent = once ? rank.once : rank.pairs;
  const std::uint64_t arriving = once ? rank.arriving_once : rank.arriving_rows;
  const auto row_bytes = static_cast<double>(sizes.expert.hidden * sizes.bytes_per_value);
  const double beside = once ? 12.0 * sizes.top_k : 0.0;
  const double announced = 4.0 * where.slots_of(index) * (where.num_ranks() - 1);
  const double in = static_cast<double>(arriving) * (row_bytes + beside) + announced;
  const double answers = static_cast<double>(arriving) * row_bytes;
  const double latency = where.num_ranks() > 1 ? machine.latency_s : 0.0;
  const auto exchange = [&](double leaving, double coming) {
    return latency + std::max(leaving, coming) / machine.link_bytes_per_s;
  };
  const auto experts = [&](std::uint64_t rows, int slots) {
    return std::max(
        static_cast<double>(rows) * sizes.expert.flops_per_expert_call() / machine.flops,
        slots * sizes.expert.expert_bytes() / machine.memory_bytes_per_s);
  };
  rank_times times;
  times.out = latency + exchange(static_cast<double>(sent.bytes_out), in);  // counts, then rows
  times.back = exchange(answers, static_cast<double>(sent.bytes_back));
  times.all = experts(rank.own_rows + rank.arriving_rows, rank.slots);
  times.own = experts(rank.own_rows, rank.own_slots);
  times.arriving = experts(rank.arriving_rows, rank.arriving_slots);
  return times;
}

void set_seconds(const std::vector<rank_times>& ranks, call_figures& call) {
  double out = 0.0, all = 0.0, back = 0.0, answered = 0.0;
  for (const rank_times& rank : ranks) {
    out = std::max(out, rank.out);
    all = std::max(all, rank.all);
    back = std::max(back, rank.back);
    // Own rows run until others arrive; what is left of them waits until those are answered.
    answered = std::max(answered, rank.out + rank.arriving);
  }
  call.seconds = out + all + back;
  for (const rank_times& rank : ranks) {
    const double left = std::max(0.0, rank.own - rank.out);
    call.overlapped_seconds =
        std::max({call.overlapped_seconds, answered + rank.back, rank.out + rank.arriving + left});
  }
}

}  // namespace

call_figures figures_of_call(const placement& where,
                             const std::vector<expert_parallel::routed_tokens>& tokens,
                             const call_sizes& sizes, const rank_machine& machine,
                             dispatch_form form) {
  const int num_ranks = where.num_ranks();
  const expert_parallel::row_sizes rows = {static_cast<int>(sizes.expert.hidden), sizes.top_k,
                                           sizes.bytes_per_value};
  const auto slots = static_cast<std::size_t>(where.num_slots());
  std::vector<std::uint64_t> of_sender(slots), arriving(slots), own(slots);
  call_figures call;
  call.ranks.resize(static_cast<std::size_t>(num_ranks));
  for (int sender = 0; sender < num_ranks; ++sender) {
    rank_figures& rank = call.ranks[static_cast<std::size_t>(sender)];
    const expert_parallel::routed_tokens& routed = tokens[static_cast<std::size_t>(sender)];
    std::fill(of_sender.begin(), of_sender.end(), 0);
    rank.pairs =
        count_traffic(where, sender, dispatch_form::each_pair, routed, rows, of_sender.data());
    std::vector<std::uint64_t> to_ranks(call.ranks.size());
    rank.once = count_traffic(where, sender, dispatch_form::once_a_rank, routed, rows, nullptr,
                              to_ranks.data());
    for (int target = 0; target < num_ranks; ++target)
      if (target != sender)
        call.ranks[static_cast<std::size_t>(target)].arriving_once +=
            to_ranks[static_cast<std::size_t>(target)];
    for (std::size_t slot = 0; slot < slots; ++slot)
      (where.rank_of(static_cast<int>(slot)) == sender ? own : arriving)[slot] += of_sender[slot];
  }
  std::vector<rank_times> times;
  for (int index = 0; index < num_ranks; ++index) {
    rank_figures& rank = call.ranks[static_cast<std::size_t>(index)];
    for (int slot = where.first_slot(index); slot < where.first_slot(index + 1); ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      rank.own_rows += own[s];
      rank.arriving_rows += arriving[s];
      rank.own_slots += own[s] != 0 ? 1 : 0;
      rank.arriving_slots += arriving[s] != 0 ? 1 : 0;
      rank.slots += own[s] + arriving[s] != 0 ? 1 : 0;
    }
    times.push_back(times_of(rank, where, index, sizes, machine, form));
  }
  set_seconds(times, call);
  return call;
}

}  // namespace bench

#include "traffic.hpp"

#include <cstddef>
#include <vector>

namespace expert_parallel {

traffic count_traffic(const placement& where, int rank, dispatch_form form,
                      const routed_tokens& routed, const row_sizes& sizes, std::uint64_t* slot_rows,
                      std::uint64_t* rank_rows) {
  const std::vector<std::int32_t> slot_of = where.expert_map(rank);
  std::vector<std::int64_t> last_token(static_cast<std::size_t>(where.num_ranks()), -1);
  traffic sent;
  for (std::int64_t t = 0; t < routed.num_tokens; ++t)
    for (std::int64_t j = t * sizes.top_k; j < t * sizes.top_k + routed.topk_counts[t]; ++j) {
      const int slot = slot_of[static_cast<std::size_t>(routed.topk_ids[j])];
      if (slot_rows != nullptr) ++slot_rows[slot];
      const int target = where.rank_of(slot);
      std::int64_t& last = last_token[static_cast<std::size_t>(target)];
      const bool travels = form == dispatch_form::each_pair || last != t;
      last = t;
      if (travels && rank_rows != nullptr) ++rank_rows[target];
      if (travels && target != rank) ++sent.rows;
    }
  const auto row_bytes = static_cast<std::uint64_t>(sizes.hidden_size) *
                         static_cast<std::uint64_t>(sizes.bytes_per_value);
  const std::uint64_t beside =
      form == dispatch_form::once_a_rank ? 12u * static_cast<std::uint64_t>(sizes.top_k) : 0u;
  const auto announced = static_cast<std::uint64_t>(where.num_slots() - where.slots_of(rank));
  sent.bytes_out = sent.rows * (row_bytes + beside) + 4 * announced;
  sent.bytes_back = sent.rows * row_bytes;
  return sent;
}

}  // namespace expert_parallel

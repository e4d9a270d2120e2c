#include "placement.hpp"

#include <adaptive_k/config.hpp>
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace expert_parallel {
namespace {

std::size_t at(int index) {
  return static_cast<std::size_t>(index);
}

/// Slots of `rank` where `slots` are shared out evenly.
int share_of(int slots, int ranks, int rank) {
  return static_cast<int>(std::int64_t{slots} * (rank + 1) / ranks -
                          std::int64_t{slots} * rank / ranks);
}

}  // namespace

placement::placement(int num_experts, int num_ranks, std::vector<std::vector<int>> experts_of_rank)
    : copies_(at(num_experts)) {
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::vector<int>& held = experts_of_rank[at(rank)];
    std::sort(held.begin(), held.end());
    first_slot_.push_back(num_slots());
    for (const int expert : held) {
      copies_[at(expert)].push_back(num_slots());
      slot_experts_.push_back(expert);
      slot_ranks_.push_back(rank);
    }
  }
  first_slot_.push_back(num_slots());
}

placement placement::contiguous(int num_experts, int num_ranks) {
  const std::int64_t slots = std::max(num_experts, num_ranks);
  std::vector<std::vector<int>> held(at(num_ranks));
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    // The rank r with slots * r / ranks <= slot < slots * (r + 1) / ranks.
    const auto rank = ((slot + 1) * num_ranks - 1) / slots;
    held[static_cast<std::size_t>(rank)].push_back(static_cast<int>(slot * num_experts / slots));
  }
  return placement(num_experts, num_ranks, std::move(held));
}

adaptive_k::status placement::by_load(const std::vector<std::uint64_t>& loads, int num_ranks,
                                      int redundant, placement* made) {
  const auto invalid = adaptive_k::status_code::invalid_argument;
  const int num_experts = static_cast<int>(loads.size());
  if (num_experts < 1 || num_experts > adaptive_k::max_experts)
    return adaptive_k::status::error(invalid, "`loads` has %d values, expected 1..%d experts",
                                     num_experts, adaptive_k::max_experts);
  if (num_ranks < 1 || num_ranks > adaptive_k::max_experts)
    return adaptive_k::status::error(invalid, "`num_ranks` is %d, expected 1..%d", num_ranks,
                                     adaptive_k::max_experts);
  if (redundant < 0 || redundant > adaptive_k::max_experts - num_experts)
    return adaptive_k::status::error(invalid, "`redundant` is %d, expected 0..%d beside %d experts",
                                     redundant, adaptive_k::max_experts - num_experts, num_experts);
  const int slots = std::max(num_experts + redundant, num_ranks);
  std::vector<int> copies(loads.size(), 1);
  const auto by_copy = [&](int expert) {
    return static_cast<double>(loads[at(expert)]) / copies[at(expert)];
  };
  for (int given = num_experts; given < slots; ++given) {
    int most = -1;
    for (int expert = 0; expert < num_experts; ++expert)
      if (copies[at(expert)] < num_ranks && (most < 0 || by_copy(expert) > by_copy(most)))
        most = expert;
    if (most < 0)
      return adaptive_k::status::error(
          invalid,
          "`redundant` is %d, expected at most %d: a copy of each expert on each of %d "
          "ranks",
          redundant, num_experts * (num_ranks - 1), num_ranks);
    ++copies[at(most)];
  }

  std::vector<int> heaviest(loads.size());
  std::iota(heaviest.begin(), heaviest.end(), 0);
  std::stable_sort(heaviest.begin(), heaviest.end(),
                   [&](int a, int b) { return by_copy(a) > by_copy(b); });
  std::vector<std::vector<int>> held(at(num_ranks));
  std::vector<double> load(at(num_ranks), 0.0);
  const auto lightest_rank = [&](int expert, bool again) {
    int best = -1;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const bool has_room =
          static_cast<int>(held[at(rank)].size()) < share_of(slots, num_ranks, rank);
      const bool has_copy = std::count(held[at(rank)].begin(), held[at(rank)].end(), expert) != 0;
      if (!has_room || (has_copy && !again)) continue;
      if (best < 0 || load[at(rank)] < load[at(best)]) best = rank;
    }
    return best;
  };
  for (const int expert : heaviest)
    for (int copy = 0; copy < copies[at(expert)]; ++copy) {
      int rank = lightest_rank(expert, false);
      // A second copy on one rank serves nobody: only where no other rank has room.
      if (rank < 0) rank = lightest_rank(expert, true);
      held[at(rank)].push_back(expert);
      load[at(rank)] += by_copy(expert);
    }
  *made = placement(num_experts, num_ranks, std::move(held));
  return {};
}

std::vector<std::int32_t> placement::expert_map(int rank) const {
  std::vector<std::int32_t> map;
  for (const std::vector<int>& copies : copies_) {
    int slot = copies[at(rank) % copies.size()];
    for (const int copy : copies)
      if (rank_of(copy) == rank) slot = copy;
    map.push_back(slot);
  }
  return map;
}

std::uint64_t placement::fingerprint() const noexcept {
  const std::uint64_t experts =
      hash_bytes(slot_experts_.data(), slot_experts_.size() * sizeof(int));
  return hash_bytes(slot_ranks_.data(), slot_ranks_.size() * sizeof(int), experts);
}

std::uint64_t hash_bytes(const void* bytes, std::size_t size, std::uint64_t hash) noexcept {
  const auto* next = static_cast<const unsigned char*>(bytes);
  for (std::size_t i = 0; i < size; ++i) hash = (hash ^ next[i]) * 0x100000001B3u;
  return hash;
}

}  // namespace expert_parallel

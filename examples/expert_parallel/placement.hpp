// Which rank holds which expert, more than one rank where an expert is replicated.
#pragma once

#include <adaptive_k/status.hpp>
#include <cstdint>
#include <vector>

namespace expert_parallel {

/// A slot is one copy of one expert on one rank. Slots are numbered rank by rank, and those of a
/// rank by expert: rows in order of slot are in order of rank, and need no further sorting to be
/// sent.
class placement {
 public:
  /// Slots of an even share each: expert e is the e-th, in order. With more ranks than experts
  /// every rank has one slot, and an expert that many copies more. E in 1..1024, R in 1..1024.
  static placement contiguous(int num_experts, int num_ranks);

  /// Copies for the experts with the largest load by copy, `redundant` of them or as many more as
  /// give every rank a slot; then the heaviest copy first to the least loaded rank that has room.
  /// `loads` [E], such as the tokens of each expert. E, R and E + redundant in 1..1024; refused
  /// with a message otherwise.
  static adaptive_k::status by_load(const std::vector<std::uint64_t>& loads, int num_ranks,
                                    int redundant, placement* made);

  int num_experts() const noexcept { return static_cast<int>(copies_.size()); }
  int num_ranks() const noexcept { return static_cast<int>(first_slot_.size()) - 1; }
  int num_slots() const noexcept { return static_cast<int>(slot_experts_.size()); }
  /// The slots of `rank`: first_slot(rank) to first_slot(rank + 1) - 1.
  int first_slot(int rank) const noexcept { return first_slot_[static_cast<std::size_t>(rank)]; }
  int slots_of(int rank) const noexcept { return first_slot(rank + 1) - first_slot(rank); }
  int expert_of(int slot) const noexcept { return slot_experts_[static_cast<std::size_t>(slot)]; }
  int rank_of(int slot) const noexcept { return slot_ranks_[static_cast<std::size_t>(slot)]; }

  /// [E], the slot to which `rank` sends the tokens of each expert: its own copy where it has one,
  /// else the copy number `rank` modulo their number. The expert_map of a permutation whose
  /// num_local_experts is num_slots().
  std::vector<std::int32_t> expert_map(int rank) const;

  /// All of it as text, for ranks to compare.
  std::uint64_t fingerprint() const noexcept;

 private:
  placement(int num_experts, int num_ranks, std::vector<std::vector<int>> experts_of_rank);

  std::vector<int> slot_experts_;         // [S]
  std::vector<int> slot_ranks_;           // [S]
  std::vector<int> first_slot_;           // [R + 1]
  std::vector<std::vector<int>> copies_;  // [E], the slots of each expert
};

/// FNV-1a of `size` bytes, going on from `hash`.
std::uint64_t hash_bytes(const void* bytes, std::size_t size,
                         std::uint64_t hash = 0xCBF29CE484222325u) noexcept;

}  // namespace expert_parallel

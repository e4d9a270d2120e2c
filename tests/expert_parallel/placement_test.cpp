// Placements of experts, and what a routing sends under them, against counting by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <expert_parallel/traffic.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

namespace {

using expert_parallel::count_traffic;
using expert_parallel::dispatch_form;
using expert_parallel::placement;
using expert_parallel::traffic;

/// What every placement must have: each expert somewhere, even shares, a map to slots of the
/// expert.
void expect_whole(const placement& where, int experts, int ranks) {
  ASSERT_EQ(where.num_experts(), experts);
  ASSERT_EQ(where.num_ranks(), ranks);
  std::set<int> held;
  int least = where.num_slots(), most = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    least = std::min(least, where.slots_of(rank));
    most = std::max(most, where.slots_of(rank));
    for (int slot = where.first_slot(rank); slot < where.first_slot(rank + 1); ++slot) {
      EXPECT_EQ(where.rank_of(slot), rank);
      const int before = slot > where.first_slot(rank) ? slot - 1 : slot;
      EXPECT_LE(where.expert_of(before), where.expert_of(slot));
      held.insert(where.expert_of(slot));
    }
  }
  EXPECT_EQ(static_cast<int>(held.size()), experts);
  EXPECT_GE(least, 1);
  EXPECT_LE(most - least, 1);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto map = where.expert_map(rank);
    ASSERT_EQ(static_cast<int>(map.size()), experts);
    for (int e = 0; e < experts; ++e) {
      const int slot = map[static_cast<std::size_t>(e)];
      EXPECT_EQ(where.expert_of(slot), e);
      bool has_own = false;
      for (int own = where.first_slot(rank); own < where.first_slot(rank + 1); ++own)
        has_own = has_own || where.expert_of(own) == e;
      EXPECT_EQ(where.rank_of(slot) == rank, has_own);
    }
  }
}

TEST(Placement, ContiguousSharesEvenly) {
  for (const int experts : {1, 2, 31, 32, 60, 256, 1024})
    for (const int ranks : {1, 2, 3, 7, 8, 64, 256})
      expect_whole(placement::contiguous(experts, ranks), experts, ranks);
  const placement third = placement::contiguous(32, 3);
  EXPECT_EQ(third.slots_of(0), 10);
  EXPECT_EQ(third.slots_of(1), 11);
  EXPECT_EQ(third.slots_of(2), 11);
}

TEST(Placement, ByLoadSpreadsTheHeaviest) {
  std::vector<std::uint64_t> loads(16, 10);
  loads[3] = 100;
  loads[7] = 90;
  placement where = placement::contiguous(1, 1);
  ASSERT_TRUE(placement::by_load(loads, 4, 4, &where).ok());
  expect_whole(where, 16, 4);
  EXPECT_EQ(where.num_slots(), 20);
  std::vector<int> copies(16, 0);
  std::vector<double> load(4, 0.0);
  for (int slot = 0; slot < 20; ++slot) ++copies[static_cast<std::size_t>(where.expert_of(slot))];
  EXPECT_EQ(copies[3], 3);
  EXPECT_EQ(copies[7], 3);
  for (int slot = 0; slot < 20; ++slot) {
    const auto e = static_cast<std::size_t>(where.expert_of(slot));
    load[static_cast<std::size_t>(where.rank_of(slot))] +=
        static_cast<double>(loads[e]) / copies[e];
  }
  // 330 in all, 82.5 a rank; contiguous shares would have one rank with 130.
  EXPECT_LE(*std::max_element(load.begin(), load.end()), 95.0);

  for (const int ranks : {1, 3, 40})
    for (const int redundant : {0, 5}) {
      if (ranks == 1 && redundant > 0) continue;
      ASSERT_TRUE(placement::by_load(loads, ranks, redundant, &where).ok());
      expect_whole(where, 16, ranks);
    }
}

TEST(Placement, RefusesWhatCannotBe) {
  placement where = placement::contiguous(1, 1);
  const std::vector<std::uint64_t> loads(4, 1);
  const auto message = [&](int ranks, int redundant) {
    return std::string(placement::by_load(loads, ranks, redundant, &where).message());
  };
  EXPECT_EQ(message(0, 0), "num_ranks is 0, expected 1..1024");
  EXPECT_EQ(message(2, -1), "redundant is -1, expected 0..1020 beside 4 experts");
  EXPECT_EQ(message(2, 5),
            "redundant is 5, expected at most 4: a copy of each expert on each of 2 ranks");
  EXPECT_EQ(std::string(placement::by_load({}, 2, 0, &where).message()),
            "loads has 0 values, expected 1..1024 experts");
}

TEST(Traffic, CountedByHand) {
  // Two ranks of two experts; rank 0 has three tokens.
  const placement where = placement::contiguous(4, 2);
  const std::vector<std::int32_t> ids = {0, 2, 3, 2, 3, 0, 1, -1, -1};
  const std::vector<std::int32_t> counts = {3, 2, 1};  // the last id of the second token is dropped
  std::vector<std::uint64_t> slots(4, 0);
  const traffic pairs = count_traffic(where, 0, dispatch_form::each_pair,
                                      {ids.data(), counts.data(), 3}, {10, 3, 4}, slots.data());
  EXPECT_EQ(pairs.rows, 4u);
  EXPECT_EQ(pairs.bytes_out, 4u * 40u + 2u * 4u);
  EXPECT_EQ(pairs.bytes_back, 4u * 40u);
  EXPECT_EQ(slots, (std::vector<std::uint64_t>{1, 1, 2, 2}));
  const traffic once = count_traffic(where, 0, dispatch_form::once_a_rank,
                                     {ids.data(), counts.data(), 3}, {10, 3, 4});
  EXPECT_EQ(once.rows, 2u);
  EXPECT_EQ(once.bytes_out, 2u * (40u + 36u) + 2u * 4u);
  EXPECT_EQ(once.bytes_back, 2u * 40u);
  // The same tokens on the other rank.
  EXPECT_EQ(
      count_traffic(where, 1, dispatch_form::each_pair, {ids.data(), counts.data(), 3}, {10, 3, 4})
          .rows,
      2u);
  EXPECT_EQ(count_traffic(where, 1, dispatch_form::once_a_rank, {ids.data(), counts.data(), 3},
                          {10, 3, 4})
                .rows,
            2u);
}

}  // namespace

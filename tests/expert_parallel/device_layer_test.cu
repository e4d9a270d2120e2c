// The device half of examples/expert_parallel: ranks are layers of one process, rows are copied
// where NCCL would carry them, and every output is compared with plain loops on the host, bit for
// bit.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "../../examples/expert_parallel/device_layer.hpp"
#include "../../examples/expert_parallel/experts.hpp"
#include "adaptive_k/adaptive_k.hpp"
#include "device_buffer.hpp"

namespace {

using expert_parallel::device_experts;
using expert_parallel::device_layer;
using expert_parallel::made_up_layer;
using expert_parallel::placement;

constexpr int hidden = 24, intermediate = 20, num_experts = 12, top_k = 4;
constexpr std::int64_t num_tokens = 37;
const expert_parallel::model_shape shape = {num_experts, hidden, intermediate, 1};

adaptive_k::router make_router() {
  adaptive_k::gating gating;
  gating.num_experts = num_experts;
  gating.top_k = top_k;
  return {gating, adaptive_k::k_policy::top_p(0.8f, top_k)};
}

/// One rank: its tokens, experts and layer.
struct rank_on_device {
  rank_on_device(const placement& where, int rank, std::int64_t first, std::int64_t tokens)
      : made(shape, 0, where, rank),
        layer(where, rank, make_router(), hidden, intermediate),
        gate(made.all_gates()),
        up(made.all_ups()),
        down(made.all_downs()),
        router(made.router()),
        x(static_cast<std::size_t>(tokens * hidden)),
        y(static_cast<std::size_t>(tokens * hidden)),
        logits(static_cast<std::size_t>(tokens * num_experts)),
        num_tokens(tokens) {
    std::vector<float> values(static_cast<std::size_t>(tokens * hidden));
    for (std::int64_t t = 0; t < tokens; ++t)
      expert_parallel::make_token(0, first + t, hidden, values.data() + t * hidden);
    x.write(values);
  }

  made_up_layer made;
  device_layer layer;
  device::buffer<float> gate, up, down, router, x, y, logits;
  std::int64_t num_tokens;

  device_experts experts() const { return {gate.get(), up.get(), down.get()}; }
};

void copy(void* to, const void* from, std::size_t bytes) {
  ASSERT_EQ(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice), cudaSuccess);
}

void expect_ok(const adaptive_k::status& result) {
  ASSERT_TRUE(result.ok()) << result.message();
}

/// The outputs of all tokens, from a job of `ranks` ranks, a call repeated to use grown buffers.
std::vector<float> run_job(const placement& where) {
  const int ranks = where.num_ranks();
  std::vector<std::unique_ptr<rank_on_device>> job;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t first = num_tokens * rank / ranks;
    job.push_back(std::make_unique<rank_on_device>(where, rank, first,
                                                   num_tokens * (rank + 1) / ranks - first));
  }
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (auto& rank : job) {
      expect_ok(expert_parallel::multiply_on_device(rank->x.get(), rank->router.get(),
                                                    rank->num_tokens, hidden, num_experts,
                                                    rank->logits.get(), nullptr));
      expect_ok(rank->layer.route(0, rank->x.get(), rank->logits.get(), rank->num_tokens, nullptr));
    }
    std::vector<std::vector<std::int32_t>> counts;
    for (auto& rank : job) {
      counts.emplace_back(static_cast<std::size_t>(where.num_slots()));
      EXPECT_EQ(cudaMemcpy(counts.back().data(), rank->layer.slot_counts(),
                           counts.back().size() * 4, cudaMemcpyDeviceToHost),
                cudaSuccess);
    }
    for (int to = 0; to < ranks; ++to) {
      const int own = where.slots_of(to);
      std::vector<std::int32_t> arriving(static_cast<std::size_t>(ranks * own), 0);
      for (int from = 0; from < ranks; ++from) {
        if (from == to) continue;
        copy(job[to]->layer.arriving_counts() + from * own,
             job[from]->layer.slot_counts() + where.first_slot(to), own * sizeof(std::int32_t));
        for (int i = 0; i < own; ++i)
          arriving[static_cast<std::size_t>(from * own + i)] =
              counts[static_cast<std::size_t>(from)]
                    [static_cast<std::size_t>(where.first_slot(to) + i)];
      }
      expect_ok(job[to]->layer.plan(counts[static_cast<std::size_t>(to)].data(), arriving.data()));
    }
    const auto each_pair = [&](auto carry) {
      for (int from = 0; from < ranks; ++from)
        for (int to = 0; to < ranks; ++to) {
          const auto f = static_cast<std::size_t>(from), t = static_cast<std::size_t>(to);
          const std::int64_t rows = job[f]->layer.leaving().counts[t];
          ASSERT_EQ(rows, job[t]->layer.arriving().counts[f]);
          if (rows != 0)
            carry(job[f]->layer, job[f]->layer.leaving().first[t] * hidden, job[t]->layer,
                  job[t]->layer.arriving().first[f] * hidden, rows * hidden * sizeof(float));
        }
    };
    each_pair([](device_layer& from, std::int64_t at, device_layer& to, std::int64_t to_at,
                 std::size_t bytes) { copy(to.arrived() + to_at, from.inputs() + at, bytes); });
    for (auto& rank : job) {
      expect_ok(rank->layer.run_own(rank->experts(), nullptr));
      expect_ok(rank->layer.run_arrivals(rank->experts(), nullptr));
    }
    each_pair([](device_layer& from, std::int64_t at, device_layer& to, std::int64_t to_at,
                 std::size_t bytes) { copy(from.outputs() + at, to.answers() + to_at, bytes); });
    for (auto& rank : job) expect_ok(rank->layer.combine(rank->y.get(), nullptr));
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  std::vector<float> all;
  for (auto& rank : job) {
    const std::vector<float> y = rank->y.read();
    all.insert(all.end(), y.begin(), y.end());
  }
  return all;
}

std::vector<float> expected() {
  const adaptive_k::router router = make_router();
  const placement one = placement::contiguous(num_experts, 1);
  const made_up_layer experts(shape, 0, one, 0);
  std::vector<float> all;
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    std::vector<float> x(hidden), logits(num_experts), y(hidden, 0.0f), of_expert(hidden);
    expert_parallel::make_token(0, token, hidden, x.data());
    experts.router_logits(x.data(), 1, logits.data());
    const adaptive_k::routed_batch routed =
        router.route(0, adaptive_k::logits_view<float>{logits.data(), 1, num_experts, 0});
    for (int j = 0; j < routed.topk_counts[0]; ++j) {
      experts.run(routed.topk_ids[static_cast<std::size_t>(j)], x.data(), 1, of_expert.data());
      for (std::size_t i = 0; i < y.size(); ++i)
        y[i] = std::fma(routed.topk_weights[static_cast<std::size_t>(j)], of_expert[i], y[i]);
    }
    all.insert(all.end(), y.begin(), y.end());
  }
  return all;
}

TEST(DeviceLayer, EveryNumberOfRanksGivesTheHostsBits) {
  const std::vector<float> host = expected();
  for (const int ranks : {1, 2, 3, 8})
    EXPECT_EQ(run_job(placement::contiguous(num_experts, ranks)), host) << ranks;
}

TEST(DeviceLayer, ReplicatedExpertsGiveTheHostsBits) {
  std::vector<std::uint64_t> loads(num_experts, 1);
  loads[2] = 9;
  placement where = placement::contiguous(1, 1);
  ASSERT_TRUE(placement::by_load(loads, 3, 3, &where).ok());
  EXPECT_EQ(run_job(where), expected());
}

TEST(DeviceLayer, Averages) {
  const device::buffer<float> x(std::vector<float>{1.0f, 2.0f, -3.0f});
  const device::buffer<float> y(std::vector<float>{2.0f, 0.0f, 5.0f});
  ASSERT_TRUE(expert_parallel::average_on_device(x.get(), y.get(), 3, nullptr).ok());
  EXPECT_EQ(x.read(), (std::vector<float>{1.5f, 1.0f, 1.0f}));
}

}  // namespace

// Routing and permutation in one call, against the host's two, bit for bit; how many launches that
// takes; and what a captured graph sees.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/host/permutation.hpp"
#include "batches.hpp"
#include "permutation_cases.hpp"
#include "schedules.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace)

using permutations::arrays;

/// One model and batch, on both sides, with every buffer of a call. The workspace is zeroed once
/// and then used by all launches.
template <class Id, class Logit>
class both_sides {
 public:
  both_sides(const twin::batch<Logit>& input, const permutation_shape& shape,
             const std::vector<std::int32_t>& map)
      : input_(input),
        shape_(shape),
        map_(map),
        slots_(static_cast<std::size_t>(shape.num_tokens * shape.top_k)),
        tokens_(static_cast<std::size_t>(shape.num_tokens)),
        host_(input.model, input.policy, {input.fill}),
        plans_(device::uploaded(host_)),
        logits_(input.logits),
        bias_(input.bias),
        padding_(input.padding_mask),
        device_map_(map),
        ids_(slots_),
        weights_(slots_),
        counts_(tokens_),
        metrics_(1),
        router_(input.model, plans_.ref(), input.fill, overlaps()) {
    metrics_.clear();
    EXPECT_TRUE(call(nullptr, permutation_output{}, nullptr));
    workspace_ = std::make_unique<device::buffer<unsigned char>>(bytes_);
    workspace_->write(std::vector<unsigned char>(bytes_, 0xA5));
    EXPECT_EQ(cudaMemset(workspace_->get(), 0, 16), cudaSuccess);
  }

  status call(void* workspace, const permutation_output& output, cudaStream_t stream) {
    return router_.route_permute(
        0,
        logits_view<Logit>{logits_.get(), shape_.num_tokens, shape_.num_experts, input_.row_stride},
        routing_replay<Id>{}, routing_output<Id, float>{ids_.get(), weights_.get(), counts_.get()},
        {output, shape_.block_size, shape_.num_local_experts, device_map_.get()}, metrics_.get(),
        {bias_.get(), padding_.get()}, workspace, &bytes_, stream);
  }

  void launch_and_compare() {
    const arrays blank = permutations::sized_arrays(shape_);
    const device::buffer<std::int32_t> counts(blank.expert_counts), offsets(blank.expert_offsets),
        sorted(blank.sorted_slots), tokens(blank.sorted_tokens), rows(blank.row_of_slot),
        blocks(blank.block_experts);
    const status result =
        call(workspace_->get(),
             {counts.get(), offsets.get(), sorted.get(), tokens.get(), rows.get(), blocks.get()},
             nullptr);
    ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();

    std::vector<Id> ids(slots_);
    std::vector<float> weights(slots_);
    std::vector<std::int32_t> host_counts(tokens_);
    ASSERT_TRUE(
        host_
            .route(0,
                   logits_view<Logit>{input_.logits.data(), shape_.num_tokens, shape_.num_experts,
                                      input_.row_stride},
                   routing_output<Id, float>{ids.data(), weights.data(), host_counts.data()},
                   &host_metrics_,
                   {twin::data_or_null(input_.bias), twin::data_or_null(input_.padding_mask)})
            .ok());
    arrays host = permutations::sized_arrays(shape_);
    ASSERT_TRUE(
        permute<Id>(shape_, {ids.data(), host_counts.data(), twin::data_or_null(map_)}, host.view())
            .ok());
    twin::expect_same_bits("id", ids_.read(), ids, shape_.top_k);
    twin::expect_same_bits("weight", weights_.read(), weights, shape_.top_k);
    twin::expect_same_bits("expert count", counts.read(), host.expert_counts, 1);
    twin::expect_same_bits("expert offset", offsets.read(), host.expert_offsets, 1);
    twin::expect_same_bits("sorted slot", sorted.read(), host.sorted_slots, 1);
    twin::expect_same_bits("sorted token", tokens.read(), host.sorted_tokens, 1);
    twin::expect_same_bits("row of slot", rows.read(), host.row_of_slot, shape_.top_k);
    twin::expect_same_bits("block expert", blocks.read(), host.block_experts, 1);
    twin::expect_same_metrics(cuda::to_metrics<routing_metrics>(metrics_.read()[0]), host_metrics_);
  }

  void* workspace() { return workspace_->get(); }
  cuda::device_plans& plans() { return plans_; }
  std::vector<std::int32_t> counts() { return counts_.read(); }

 private:
  static bool overlaps() {
    bool supported = false;
    EXPECT_TRUE(cuda::overlap_supported(&supported));
    return supported;
  }

  const twin::batch<Logit>& input_;
  permutation_shape shape_;
  std::vector<std::int32_t> map_;
  std::size_t slots_, tokens_;
  router host_;
  cuda::device_plans plans_;
  device::buffer<Logit> logits_;
  device::optional_copy<float> bias_;
  device::optional_copy<std::uint8_t> padding_;
  device::optional_copy<std::int32_t> device_map_;
  device::buffer<Id> ids_;
  device::buffer<float> weights_;
  device::buffer<std::int32_t> counts_;
  device::buffer<cuda::device_metrics> metrics_;
  routing_metrics host_metrics_;
  cuda::device_router router_;
  std::size_t bytes_ = 0;
  std::unique_ptr<device::buffer<unsigned char>> workspace_;
};

gating model(int num_experts, int top_k, bool biased) {
  gating g;
  g.num_experts = num_experts;
  g.top_k = top_k;
  if (biased) {
    g.kind = gating_kind::sigmoid;
    g.selection_bias = true;
  }
  return g;
}

template <class Logit>
twin::batch<Logit> make_input(inputs::sequence& from, const gating& g, std::int64_t tokens) {
  twin::batch<Logit> input = twin::make_batch<Logit>(from, g, tokens, from.below(3));
  input.policy = k_policy::top_p(0.6f, g.top_k);
  input.fill = static_cast<fill_id>(from.below(3));
  if (from.chance(2))
    for (std::int64_t t = 0; t < tokens; ++t) input.padding_mask.push_back(from.chance(5) ? 1 : 0);
  return input;
}

template <class Id, class Logit>
void run(inputs::sequence& from, const gating& g, std::int64_t tokens, std::uint64_t first_seed,
         int num_seeds) {
  const twin::batch<Logit> input = make_input<Logit>(from, g, tokens);
  permutation_shape shape = {tokens, g.top_k, g.num_experts, 0, from.chance(2) ? 1 : 16};
  std::vector<std::int32_t> map;
  if (from.chance(3)) {  // every other expert is this rank's
    shape.num_local_experts = (g.num_experts + 1) / 2;
    for (int e = 0; e < g.num_experts; ++e) map.push_back(e % 2 == 0 ? e / 2 : -1);
  }
  both_sides<Id, Logit> sides(input, shape, map);
  for (int i = 0; i < num_seeds; ++i) {
    const std::uint64_t seed = first_seed + static_cast<std::uint64_t>(i);
    SCOPED_TRACE("T " + std::to_string(tokens) + ", E " + std::to_string(g.num_experts) + ", K0 " +
                 std::to_string(g.top_k) + ", seed " + std::to_string(seed));
    schedules::choose(seed);
    sides.launch_and_compare();
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(route_permute, equals_host) {
  inputs::sequence from(1);
  for (const std::int64_t tokens : {0, 1, 2, 31, 64, 129, 256, 257, 600, 1111}) {
    for (const gating& g : {model(8, 2, false), model(128, 8, false), model(60, 6, true),
                            model(256, 8, true), model(1024, 32, false)}) {
      if (g.num_experts == 1024 && tokens > 257) continue;
      run<std::int32_t, bfloat16>(from, g, tokens, 0, 2);
      if (::testing::Test::HasFailure()) return;
    }
    run<std::int64_t, bfloat16>(from, model(64, 4, false), tokens, 0, 1);
    run<std::uint16_t, bfloat16>(from, model(64, 4, false), tokens, 0, 1);
  }
}

TEST(route_permute, the_same_bits_in_every_order) {
  inputs::sequence from(2);
  for (const std::int64_t tokens : {7, 100, 256, 300, 600})
    for (const gating& g : {model(8, 2, false), model(60, 4, false), model(128, 8, true)}) {
      run<std::int32_t, bfloat16>(from, g, tokens, 1, 20);
      if (::testing::Test::HasFailure()) return;
    }
}

TEST(route_permute, refuses_what_it_cannot_permute) {
  inputs::sequence from(3);
  const gating g = model(16, 4, false);
  const twin::batch<bfloat16> input = make_input<bfloat16>(from, g, 20);
  const permutation_shape shape = {20, 4, 16, 0, 1};
  both_sides<std::int32_t, bfloat16> sides(input, shape, {});
  const router host(g, input.policy);
  const cuda::device_plans plans = device::uploaded(host);
  const device::buffer<bfloat16> logits(input.logits);
  const device::buffer<std::int32_t> ids(80);
  const device::buffer<float> weights(80);
  const cuda::device_router device(g, plans.ref(), fill_id::first_expert);
  std::size_t bytes = 16;
  const status result =
      device.route_permute(0, logits_view<bfloat16>{logits.get(), 20, 16, input.row_stride},
                           routing_replay<>{}, routing_output<>{ids.get(), weights.get()}, {},
                           nullptr, {}, sides.workspace(), &bytes, nullptr);
  EXPECT_STREQ(result.message(),
               "output.topk_counts is null: the permutation needs it with the fill first_expert");
  bytes = 15;
  EXPECT_STREQ(cuda::device_router(g, plans.ref())
                   .route_permute(0, logits_view<bfloat16>{logits.get(), 20, 16, input.row_stride},
                                  routing_replay<>{}, routing_output<>{ids.get(), weights.get()},
                                  {}, nullptr, {}, sides.workspace(), &bytes, nullptr)
                   .message(),
               "workspace_bytes is 15, this shape needs 16");
}

#if defined(ON_INTERPRETER)

TEST(route_permute, one_launch_up_to_256_tokens_and_two_beyond) {
  inputs::sequence from(4);
  for (const std::int64_t tokens : {1, 64, 256, 257, 5000}) {
    for (const gating& g : {model(8, 2, false), model(128, 8, true)}) {
      const twin::batch<bfloat16> input = make_input<bfloat16>(from, g, tokens);
      both_sides<std::int32_t, bfloat16> sides(input, {tokens, g.top_k, g.num_experts, 0, 1}, {});
      cudaStream_t stream = nullptr;
      ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
      device::buffer<std::int32_t> sorted(static_cast<std::size_t>(tokens * g.top_k));
      permutation_output output;
      output.sorted_slots = sorted.get();
      ptx::clear_call_log();
      ptx::reset_counters();
      ASSERT_TRUE(sides.call(sides.workspace(), output, stream));
      EXPECT_EQ(ptx::total_counters().launches, tokens <= 256 ? 1u : 2u) << tokens;
      EXPECT_TRUE(ptx::synchronous_calls().empty()) << ptx::synchronous_calls().front();
      for (const ptx::api_call& call : ptx::call_log())
        EXPECT_TRUE(call.name == "launch" || call.name == "cudaLaunchKernelExC") << call.name;
      cudaStreamDestroy(stream);
    }
  }
}

#else

TEST(route_permute, is_captured_and_replayed_with_other_thresholds) {
  inputs::sequence from(5);
  for (const std::int64_t tokens : {64, 1000}) {
    const gating g = model(64, 8, false);
    const twin::batch<bfloat16> input = make_input<bfloat16>(from, g, tokens);
    both_sides<std::int32_t, bfloat16> sides(input, {tokens, 8, 64, 0, 16}, {});
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    const permutation_shape shape = {tokens, 8, 64, 0, 16};
    device::buffer<std::int32_t> offsets(65);
    permutation_output output;
    output.expert_offsets = offsets.get();
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    const status result = sides.call(sides.workspace(), output, stream);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_TRUE(result.ok()) << result.message();
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (const int k : {1, 5, 8}) {
      ASSERT_TRUE(sides.plans().upload(router(g, k_policy::fixed(k)), stream));
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      const std::vector<std::int32_t> counts = sides.counts();
      for (std::size_t t = 0; t < counts.size(); ++t) {
        const bool padding = !input.padding_mask.empty() && input.padding_mask[t] != 0;
        ASSERT_EQ(counts[t], padding ? 0 : k);
      }
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

#endif

}  // namespace

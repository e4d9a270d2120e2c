// kernel_sweep: what other lanes a token would cost, per shape; how cuda/tuning.cuh was chosen.
#include <cstdio>
#include <cstdlib>

#include "resources.hpp"
#include "workload.cuh"

namespace kernel_cost {
namespace {

template <class Logit>
const char* dtype_name() {
  return std::is_same_v<Logit, float> ? "f32" : "bf16";
}

/// A route at T = 4096 by one candidate.
template <class Tier, class Logit>
void measure_candidate(const routing_case& which, const workload<Logit>& work,
                       const resource_map& used) {
  cuda::route_params params = {};
  const logits_view<Logit> view = work.view();
  params.logits = view.data;
  params.num_tokens = view.num_tokens;
  params.row_stride = which.num_experts;
  params.load_width = cuda::load_width(view.data, params.row_stride, which.num_experts);
  params.model = work.model();
  params.plan = work.plans().data();
  params.topk_ids = work.output().topk_ids;
  params.topk_weights = work.output().topk_weights;
  params.topk_counts = work.output().topk_counts;
  params.signal = work.output().signal;
  params.ids = cuda::id_type::int32;
  params.weights = cuda::float_type::float32;
  using family = cuda::launch_detail::softmax_topk_family<Logit>;
  const cost c = work.count([&] { return family::template launch<Tier>(params, nullptr); },
                            work.logit_bytes(), work.output_bytes());
  const auto found = used.find({"sm_80", c.kernel});
  if (found == used.end()) throw std::runtime_error("ptxas said nothing of " + c.kernel);
  const resources& r = found->second;
  const double occupancy = theoretical_occupancy(r, "sm_80", cuda::threads_per_block);
  std::printf("%4d/%-2d  %-5s %5d %12.1f %12.2f %10d %6d %9.0f%%\n", which.num_experts, which.top_k,
              dtype_name<Logit>(), Tier::lanes, c.warp_instructions_per_token,
              c.load_sectors_per_token, r.registers, r.spill_bytes + r.stack_bytes,
              100.0 * occupancy);
}

template <class Logit, int MaxExperts, int MaxTopK, int BlocksPerSm, int... Lanes>
void sweep_as(const resource_map& used) {
  const routing_case which = {MaxExperts, MaxTopK, 4096, logit_type::f32, "entropy"};
  const workload<Logit> work(which);
  (measure_candidate<cuda::tier<MaxExperts, MaxTopK, Lanes, BlocksPerSm>, Logit>(which, work, used),
   ...);
}

template <int MaxExperts, int MaxTopK, int BlocksPerSm, int... Lanes>
void sweep(const resource_map& used) {
  sweep_as<bfloat16, MaxExperts, MaxTopK, BlocksPerSm, Lanes...>(used);
  sweep_as<float, MaxExperts, MaxTopK, BlocksPerSm, Lanes...>(used);
}

}  // namespace
}  // namespace kernel_cost

int main() {
  try {
    const auto used = kernel_cost::read_resources(SWEEP_RESOURCES);
    std::printf(
        "entropy thresholds, T = 4096; per token, registers and spills on sm_80\n\n"
        "  E/K0   dtype lanes   warp instr load sectors  registers  spill  occupancy\n");
    kernel_cost::sweep<8, 2, 4, 1, 2, 4>(used);
    kernel_cost::sweep<60, 4, 4, 1, 2, 4, 8>(used);
    kernel_cost::sweep<64, 8, 3, 1, 2, 4, 8>(used);
    kernel_cost::sweep<128, 8, 2, 2, 4, 8>(used);
    kernel_cost::sweep<256, 8, 2, 2, 4, 8, 16>(used);
    kernel_cost::sweep<384, 8, 2, 4, 8, 16>(used);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "kernel_sweep: %s\n", failure.what());
    return EXIT_FAILURE;
  }
}

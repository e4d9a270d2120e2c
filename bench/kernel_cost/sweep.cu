// kernel_sweep: what other lanes a token would cost, per shape, and how long they would take by the
// interpreter's clock; how cuda/tuning.cuh was chosen.
#include <cstdio>
#include <cstdlib>

#include "resources.hpp"
#include "workload.cuh"

namespace kernel_cost {
namespace {

struct sweep_output {
  resource_map used;
  ptx::machine device;
  std::FILE* rows;  ///< JSON, an object a line; nullptr: none wanted
};

/// A route by one candidate.
template <class Tier, class Logit>
void measure_candidate(const routing_case& which, const workload<Logit>& work,
                       const sweep_output& to) {
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
  using family = cuda::launch_detail::softmax_topk_family<Logit, detail::k_plan>;
  const cost c = work.count([&] { return family::template launch<Tier>(params, nullptr); },
                            work.logit_bytes(), work.output_bytes());
  const auto found = to.used.find({"sm_80", c.kernel});
  if (found == to.used.end()) throw std::runtime_error("ptxas said nothing of " + c.kernel);
  const resources& r = found->second;
  const ptx::launch_time& launch = c.times.at(0);
  const unsigned resident = ptx::resident_blocks(to.device, static_cast<unsigned>(r.registers),
                                                 launch.shared_bytes, launch.threads);
  const ptx::grid_time t = ptx::model_grid(to.device, launch, resident);
  const char* const dtype = std::is_same_v<Logit, float> ? "f32" : "bf16";
  std::printf("%4d/%-2d  %6lld  %-5s %5d %12.1f %12.2f %10d %6d %10u %8llu %8llu\n",
              which.num_experts, which.top_k, static_cast<long long>(which.num_tokens), dtype,
              Tier::lanes, c.warp_instructions_per_token, c.load_sectors_per_token, r.registers,
              r.spill_bytes + r.stack_bytes, resident, static_cast<unsigned long long>(t.lower),
              static_cast<unsigned long long>(t.upper));
  if (to.rows != nullptr)
    std::fprintf(
        to.rows,
        "{\"num_experts\": %d, \"top_k\": %d, \"num_tokens\": %lld, \"dtype\": \"%s\", "
        "\"lanes\": %d, \"warp_instructions_per_token\": %.4f, \"registers\": %d, "
        "\"spill_and_stack_bytes\": %d, \"resident_blocks\": %u, \"data_flow_cycles\": %llu, "
        "\"issue_slot_cycles\": %llu, \"ptx_order_cycles\": %llu, \"lower_cycles\": %llu, "
        "\"upper_cycles\": %llu}\n",
        which.num_experts, which.top_k, static_cast<long long>(which.num_tokens), dtype,
        Tier::lanes, c.warp_instructions_per_token, r.registers, r.spill_bytes + r.stack_bytes,
        resident, static_cast<unsigned long long>(t.data_flow),
        static_cast<unsigned long long>(t.issue_slots),
        static_cast<unsigned long long>(t.ptx_order), static_cast<unsigned long long>(t.lower),
        static_cast<unsigned long long>(t.upper));
}

template <class Logit, int MaxExperts, int MaxTopK, int BlocksPerSm, int... Lanes>
void sweep_as(const sweep_output& to) {
  for (const std::int64_t num_tokens : {1, 8, 64, 512, 2048, 4096, 16384}) {
    const routing_case which = {MaxExperts, MaxTopK, num_tokens, logit_type::f32, "entropy"};
    const workload<Logit> work(which);
    (measure_candidate<cuda::tier<MaxExperts, MaxTopK, Lanes, BlocksPerSm>, Logit>(which, work, to),
     ...);
  }
}

template <int MaxExperts, int MaxTopK, int BlocksPerSm, int... Lanes>
void sweep(const sweep_output& to) {
  sweep_as<bfloat16, MaxExperts, MaxTopK, BlocksPerSm, Lanes...>(to);
  sweep_as<float, MaxExperts, MaxTopK, BlocksPerSm, Lanes...>(to);
}

}  // namespace
}  // namespace kernel_cost

int main(int argc, char** argv) {
  std::FILE* rows = nullptr;
  if (argc > 2 || (argc == 2 && (rows = std::fopen(argv[1], "w")) == nullptr)) {
    std::fprintf(stderr, "kernel_sweep: %s\n",
                 argc > 2 ? "at most one argument, a file for the rows" : "cannot write the file");
    return 2;
  }
  try {
    const kernel_cost::sweep_output to = {kernel_cost::read_resources(SWEEP_RESOURCES),
                                          ptx::machine_of(90), rows};
    ptx::set_clock({to.device.sm});
    std::printf(
        "entropy thresholds; per token, registers and spills on sm_80; cycles of a launch, "
        "modelled for "
        "sm_90 with %d multiprocessors\n\n"
        "  E/K0       T  dtype lanes   warp instr load sectors  registers  spill  blocks/SM    "
        "lower    "
        "upper\n",
        to.device.multiprocessors);
    kernel_cost::sweep<8, 2, 4, 1, 2, 4>(to);
    kernel_cost::sweep<60, 4, 4, 1, 2, 4, 8>(to);
    kernel_cost::sweep<64, 8, 3, 1, 2, 4, 8>(to);
    kernel_cost::sweep<128, 8, 2, 2, 4, 8>(to);
    kernel_cost::sweep<256, 8, 2, 2, 4, 8, 16>(to);
    kernel_cost::sweep<384, 8, 2, 4, 8, 16>(to);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "kernel_sweep: %s\n", failure.what());
    return EXIT_FAILURE;
  }
  if (rows != nullptr && std::fclose(rows) != 0) {
    std::fprintf(stderr, "kernel_sweep: %s: cannot be written\n", argv[1]);
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}

// kernel_sweep: how long launches of every length would take, by the interpreter's clock, where a
// warp decides each token and where other numbers of lanes do; how cuda/tuning.cuh was chosen.
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "resources.hpp"
#include "workload.cuh"

namespace kernel_cost {
namespace {

struct sweep_output {
  resource_map used;
  ptx::machine device;
  std::FILE* rows;  ///< JSON, an object a line; nullptr: none wanted
};

/// The tier of a list that serves a shape.
template <int NumExperts, int TopK, class List>
struct tier_in_use;
template <int NumExperts, int TopK, class First, class... Rest>
struct tier_in_use<NumExperts, TopK, cuda::tier_list<First, Rest...>> {
  static auto find() {
    if constexpr (NumExperts <= First::max_experts && TopK <= First::max_top_k)
      return First();
    else
      return tier_in_use<NumExperts, TopK, cuda::tier_list<Rest...>>::find();
  }
};
template <int NumExperts, int TopK, class List>
using tier_of = decltype(tier_in_use<NumExperts, TopK, List>::find());

/// Lanes that share a token.
template <class Tier>
inline constexpr int lanes_of = 32;
template <int MaxExperts, int MaxTopK, int Lanes, int BlocksPerSm>
inline constexpr int lanes_of<cuda::tier<MaxExperts, MaxTopK, Lanes, BlocksPerSm>> = Lanes;

/// Routes by one candidate: a tier of the kernels for few tokens or of those for many.
template <class Tier, bool InUse, class Logit>
void measure_candidate(const routing_case& which, const workload<Logit>& work,
                       const sweep_output& to) {
  constexpr bool by_warp = lanes_of<Tier> == 32;
  using family = std::conditional_t<
      by_warp,
      cuda::launch_detail::warp_per_token_family<detail::softmax_score, Logit, detail::k_plan>,
      cuda::launch_detail::softmax_topk_family<Logit, detail::k_plan>>;
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
  params.multiprocessors = to.device.multiprocessors;
  const cost c = work.count([&] { return family::template launch<Tier>(params, nullptr); },
                            work.logit_bytes(), work.output_bytes());
  const auto found = to.used.find({"sm_90", c.kernel});
  if (found == to.used.end()) throw std::runtime_error("ptxas said nothing of " + c.kernel);
  const resources& r = found->second;
  const ptx::launch_time& launch = c.times.at(0);
  const unsigned resident = ptx::resident_blocks(to.device, static_cast<unsigned>(r.registers),
                                                 launch.shared_bytes, launch.threads);
  const ptx::grid_time t = ptx::model_grid(to.device, launch, resident);
  const ptx::machine_schedule& code = launch.schedule;
  const bool few =
      cuda::launch_detail::takes_warp_per_token<Logit>(cuda::warp_softmax_tiers{}, params);
  const bool chosen = few == by_warp && InUse;
  const char* const dtype = std::is_same_v<Logit, float> ? "f32" : "bf16";
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf("%4d/%-2d  %6lld  %-5s %5d %12.1f %10d %6d %10u %8llu %8llu %8llu%s\n",
              which.num_experts, which.top_k, static_cast<long long>(which.num_tokens), dtype,
              lanes_of<Tier>, c.warp_instructions_per_token, r.registers,
              r.spill_bytes + r.stack_bytes, resident, number(t.lower), number(t.upper),
              number(code.stalls), chosen ? " *" : "");
  if (to.rows != nullptr)
    std::fprintf(
        to.rows,
        "{\"num_experts\": %d, \"top_k\": %d, \"num_tokens\": %lld, \"dtype\": \"%s\", "
        "\"lanes\": %d, \"chosen\": %s, \"warp_instructions_per_token\": %.4f, \"registers\": %d, "
        "\"spill_and_stack_bytes\": %d, \"resident_blocks\": %u, \"data_flow_cycles\": %llu, "
        "\"issue_slot_cycles\": %llu, \"ptx_order_cycles\": %llu, \"lower_cycles\": %llu, "
        "\"upper_cycles\": %llu, \"machine_instructions\": %llu, \"stall_cycles\": %llu, "
        "\"agreement\": %.4f}\n",
        which.num_experts, which.top_k, static_cast<long long>(which.num_tokens), dtype,
        lanes_of<Tier>, chosen ? "true" : "false", c.warp_instructions_per_token, r.registers,
        r.spill_bytes + r.stack_bytes, resident, number(t.data_flow), number(t.issue_slots),
        number(t.ptx_order), number(t.lower), number(t.upper), number(code.instructions),
        number(code.stalls), code.agreement);
}

template <class Logit, int NumExperts, int TopK, class... Others>
void sweep_as(const sweep_output& to) {
  for (const std::int64_t num_tokens : {1, 8, 64, 512, 2048, 4096, 16384}) {
    const routing_case which = {NumExperts, TopK, num_tokens, logit_type::f32, "entropy"};
    const workload<Logit> work(which);
    if (num_tokens <= 4096)  // beyond, a warp a token only takes more instructions
      measure_candidate<tier_of<NumExperts, TopK, cuda::warp_softmax_tiers>, true>(which, work, to);
    measure_candidate<tier_of<NumExperts, TopK, cuda::softmax_topk_tiers>, true>(which, work, to);
    (measure_candidate<Others, false>(which, work, to), ...);
  }
}

/// The kernels in use for a shape, and others.
template <int NumExperts, int TopK, class... Others>
void sweep(const sweep_output& to) {
  sweep_as<bfloat16, NumExperts, TopK, Others...>(to);
  sweep_as<float, NumExperts, TopK, Others...>(to);
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
    ptx::set_compute_capability(to.device.sm);
    ptx::set_clock({to.device.sm});
    std::printf(
        "entropy thresholds; cycles of a launch, modelled for sm_90 with %d multiprocessors, stall "
        "counts of its longest warp; *: what is launched\n\n"
        "  E/K0       T  dtype lanes   warp instr  registers  spill  blocks/SM    lower    upper   "
        "stalls\n",
        to.device.multiprocessors);
    kernel_cost::sweep<8, 2>(to);
    kernel_cost::sweep<60, 4>(to);
    kernel_cost::sweep<64, 8>(to);
    kernel_cost::sweep<128, 8>(to);
    kernel_cost::sweep<256, 8>(to);
    kernel_cost::sweep<384, 8>(to);
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

// The vectors of the host for every instruction set, compiled once: adaptive_k::host.
#define ADAPTIVE_K_LINKS_SCALAR 1  // what no vectors take is in route_scalar.cpp
#include "adaptive_k/host/route_vectors.hpp"
#include "adaptive_k/host/expert_combine.hpp"

#if ADAPTIVE_K_SIMD  // no set serves on x86-64 under g++ for Windows

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template void route_vectors<float, k_plan, gating>(const vector_call<float, k_plan, gating>&,
                                                   host_path, instruction_set, std::int64_t,
                                                   std::int64_t, call_metrics&) noexcept;
template void route_vectors<bfloat16, k_plan, gating>(const vector_call<bfloat16, k_plan, gating>&,
                                                      host_path, instruction_set, std::int64_t,
                                                      std::int64_t, call_metrics&) noexcept;
template void route_vectors<float16, k_plan, gating>(const vector_call<float16, k_plan, gating>&,
                                                     host_path, instruction_set, std::int64_t,
                                                     std::int64_t, call_metrics&) noexcept;

template void add_scaled<float>(instruction_set, const float*, float, int, float*) noexcept;
template void add_scaled<bfloat16>(instruction_set, const bfloat16*, float, int, float*) noexcept;
template void add_scaled<float16>(instruction_set, const float16*, float, int, float*) noexcept;

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif

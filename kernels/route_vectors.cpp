// The vectorised host path for every instruction set, compiled once: adaptive_k::host.
#define ADAPTIVE_K_LINKS_SCALAR 1  // what no vectors take is in route_scalar.cpp
#include "adaptive_k/host/route_vectors.hpp"

#if ADAPTIVE_K_SIMD  // no set serves on x86-64 under g++ for Windows

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template void route_vectors<float>(row_router<float, std::int32_t, float>&, instruction_set,
                                   std::int64_t, std::int64_t) noexcept;
template void route_vectors<bfloat16>(row_router<bfloat16, std::int32_t, float>&, instruction_set,
                                      std::int64_t, std::int64_t) noexcept;
template void route_vectors<float16>(row_router<float16, std::int32_t, float>&, instruction_set,
                                     std::int64_t, std::int64_t) noexcept;
template bool route_usual_token<float>(const usual_setup&, const float*, const routing_output<>&,
                                       std::int64_t, routing_metrics*) noexcept;
template bool route_usual_token<bfloat16>(const usual_setup&, const bfloat16*,
                                          const routing_output<>&, std::int64_t,
                                          routing_metrics*) noexcept;
template bool route_usual_token<float16>(const usual_setup&, const float16*,
                                         const routing_output<>&, std::int64_t,
                                         routing_metrics*) noexcept;

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

#endif

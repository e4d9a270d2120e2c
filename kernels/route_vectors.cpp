// The vectorised host path for every instruction set, compiled once: adaptive_k::host.
#include "adaptive_k/host/route_vectors.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template void route_vectors<float>(row_router<float, std::int32_t, float>&, instruction_set,
                                   std::int64_t, std::int64_t) noexcept;
template void route_vectors<bfloat16>(row_router<bfloat16, std::int32_t, float>&, instruction_set,
                                      std::int64_t, std::int64_t) noexcept;
template void route_vectors<float16>(row_router<float16, std::int32_t, float>&, instruction_set,
                                     std::int64_t, std::int64_t) noexcept;

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

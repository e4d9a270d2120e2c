// The scalar host path, compiled once: adaptive_k::host.
#include "adaptive_k/host/route_scalar.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template void route_scalar<float>(const row_request&, const float*, const host_replay&,
                                  token_route<max_top_k>&) noexcept;
template void route_scalar<bfloat16>(const row_request&, const bfloat16*, const host_replay&,
                                     token_route<max_top_k>&) noexcept;
template void route_scalar<float16>(const row_request&, const float16*, const host_replay&,
                                    token_route<max_top_k>&) noexcept;

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

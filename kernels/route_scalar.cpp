// The scalar host path, compiled once: adaptive_k::host.
#include "adaptive_k/host/route_scalar.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

template void decide_scalar<gating, k_plan>(const token_request&, const k_plan&, const float*,
                                            token_route<max_top_k>&) noexcept;

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

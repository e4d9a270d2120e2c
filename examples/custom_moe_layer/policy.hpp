// The layer's K policy, from a preset: apart, so that nvcc never compiles the JSON library.
#pragma once

#include "adaptive_k/host/router.hpp"

namespace custom_moe_layer {

/// A router for the reference model by a policy of its preset, or by one in words; "" is the
/// calibrated one. Throws adaptive_k::preset_error.
adaptive_k::router load_router(const char* policy);

}  // namespace custom_moe_layer

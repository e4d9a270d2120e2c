#include "policy.hpp"

#include "adaptive_k/calibration/preset.hpp"

namespace custom_moe_layer {

adaptive_k::router load_router(const char* policy) {
  return adaptive_k::from_preset("reference-32x8", policy);
}

}  // namespace custom_moe_layer

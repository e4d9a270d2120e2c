// Weights in an integer type would all be zero.
#include <cstdint>

#include "adaptive_k/types.hpp"

int main() {
  const adaptive_k::routing_output<std::int32_t, adaptive_k::float16> good;
  (void)good;
#ifdef ADAPTIVE_K_BAD_LINE
  const adaptive_k::routing_output<std::int32_t, int> bad;
  (void)bad;
#endif
  return 0;
}

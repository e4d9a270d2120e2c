// Logits in a type that no router has: double would be rounded silently.
#include <cstdint>

#include "adaptive_k/types.hpp"

int main() {
  const adaptive_k::logits_view<adaptive_k::bfloat16> good;
  (void)good;
#ifdef ADAPTIVE_K_BAD_LINE
  const adaptive_k::logits_view<double> bad;
  (void)bad;
#endif
  return 0;
}

// A status as a condition: `if (refusal)` would read as its opposite.
#include "adaptive_k/core/gating.hpp"

int main() {
  const adaptive_k::status result = validate(adaptive_k::gating{});
  if (!result.ok()) return 0;
#ifdef ADAPTIVE_K_BAD_LINE
  if (!result) return 1;
#endif
  return 0;
}

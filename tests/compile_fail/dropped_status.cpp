// A refusal that nobody looks at.
#include "adaptive_k/core/gating.hpp"

int main() {
  const adaptive_k::status good = validate(adaptive_k::gating{});
  (void)good.ok();
#ifdef ADAPTIVE_K_BAD_LINE
  validate(adaptive_k::gating{});
#endif
  return 0;
}

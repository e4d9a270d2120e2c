// A policy type without the functions that core/plan.hpp asks for.
#include "adaptive_k/adaptive_k.hpp"

struct keep_two {};

int main() {
#if defined(ADAPTIVE_K_BAD_LINE)
  const adaptive_k::basic_router<keep_two> router{adaptive_k::gating{}, keep_two{}};
#else
  const adaptive_k::router router{adaptive_k::gating{}, adaptive_k::k_policy::fixed(2)};
#endif
  return router.validity().ok() ? 1 : 0;
}

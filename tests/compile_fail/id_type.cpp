// Expert ids in a type that has no room for the fill.
#include <cstdint>

#include "adaptive_k/types.hpp"

int main() {
  const adaptive_k::routing_output<std::int64_t> good;
  (void)good;
#ifdef ADAPTIVE_K_BAD_LINE
  const adaptive_k::routing_output<bool> bad;
  (void)bad;
#endif
  return 0;
}

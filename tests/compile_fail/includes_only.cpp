// Bad only by the flags it is compiled with.
#include "adaptive_k/adaptive_k.hpp"

int main() {
  return 0;
}

// The other half: see twice_main.cpp.
#include "all_headers.hpp"

int experts_in_the_other_file();

int experts_in_the_other_file() {
  return adaptive_k::max_experts;
}

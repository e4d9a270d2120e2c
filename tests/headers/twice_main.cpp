// One half of a program whose two files include every public header.
#include <cstdio>

#include "all_headers.hpp"

int experts_in_the_other_file();

int main() {
  if (experts_in_the_other_file() != adaptive_k::max_experts) {
    std::puts("the two files disagree");
    return 1;
  }
  return 0;
}

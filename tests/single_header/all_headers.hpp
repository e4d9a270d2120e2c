// What the two files of tests/headers include here.
#include "adaptive_k/adaptive_k.hpp"

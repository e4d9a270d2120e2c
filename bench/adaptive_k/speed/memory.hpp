// How much memory a run may take.
#pragma once

#include <string>

namespace bench {

/// Free memory in bytes, of the machine or of the control group, whichever is less; 0: not known.
double free_memory_bytes();

/// Throws failure when `bytes` for `purpose` are more than what is free.
void require_memory(double bytes, const std::string& purpose);

}  // namespace bench

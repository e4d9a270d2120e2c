// The command line of the example.
#pragma once

#include <string>

namespace expert_parallel {

/// A fault that a rank has on purpose, to see how the job ends.
struct planned_fault {
  enum class kind { none, kill, stop, exit } what = kind::none;
  int rank = 0;
  int step = 0;
};

struct options {
  std::string preset = "reference-32x8";
  std::string policy;  ///< "": the preset's own. Rank 0's holds for all.
  int tokens = 256;    ///< of a step, all ranks together
  int steps = 4;
  int hidden = 64;
  int intermediate = 48;
  int redundant = 0;  ///< copies of experts beside the first
  double hold = 0.0;  ///< the saving that a controller holds; 0: none
  double timeout_s = 60.0;
  planned_fault fault;
  bool help = false;
};

extern const char* const usage;

/// What is wrong, or "".
std::string read_options(int argc, char** argv, options* read);

}  // namespace expert_parallel

// Runs a program as ranks of an MPI job on this machine.
#pragma once

#include <string>
#include <vector>

#include "cli/program.hpp"

/// Ranks that one part of a job has, and their arguments.
struct part_of_job {
  int ranks;
  std::vector<std::string> arguments;
};

/// `program` is ended, and the test fails, after 120 s: no job may hang.
inline outcome run_job(const std::string& program, const std::vector<part_of_job>& parts) {
  std::vector<std::string> arguments = {
      "--oversubscribe",    "--mca", "pml",       "ob1", "--mca", "btl", "self,tcp", "--mca",
      "btl_tcp_if_include", "lo",    "--bind-to", "none"};
  for (const part_of_job& part : parts) {
    if (&part != &parts.front()) arguments.emplace_back(":");
    arguments.insert(arguments.end(), {"-n", std::to_string(part.ranks), program});
    arguments.insert(arguments.end(), part.arguments.begin(), part.arguments.end());
  }
  return run_program(arguments,
                     "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 120");
}

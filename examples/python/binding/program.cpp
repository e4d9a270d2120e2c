// adaptive_k._program: the program adaptive-k (bench/adaptive_k) with a model that Python runs.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "engine.hpp"
#include "nanobind.hpp"

int adaptive_k_main(int argc, char** argv);  // bench/adaptive_k/main.cpp, renamed

namespace bench {

/// What main.cpp calls in place of stdout_problem, which closes stdout: here it is Python's, too.
std::string stdout_problem_left_open() {
  const bool failed = std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
  std::clearerr(stdout);
  if (!failed) return "";
  return errno != 0 ? std::strerror(errno) : "not all of it was";
}

}  // namespace bench

NB_MODULE(_program, module) {
  module.doc() = "The command line adaptive-k, over models of Python.";
  module.def(
      "main",
      [](std::vector<std::string> arguments) {
        std::vector<char*> argv;
        for (std::string& argument : arguments) argv.push_back(argument.data());
        argv.push_back(nullptr);
        const int status = adaptive_k_main(static_cast<int>(arguments.size()), argv.data());
        std::cout.flush();
        std::fflush(stdout);
        return status;
      },
      nb::arg("arguments"), "Runs it with these arguments, the program's name first; exit status.");
  module.def(
      "set_engine",
      [](nb::object engine) { adaptive_k_python::python_engine() = std::move(engine); },
      nb::arg("engine").none());
}

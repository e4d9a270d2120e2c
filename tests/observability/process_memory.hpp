// Memory of a running process, from /proc.
#pragma once

#include <sys/types.h>

#include <fstream>
#include <string>

/// A line of /proc/<pid>/status in MB, such as "VmRSS"; -1 where there is none.
inline double status_megabytes(pid_t process, const std::string& name) {
  std::ifstream lines("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(lines, line);)
    if (line.compare(0, name.size() + 1, name + ":") == 0)
      return std::stod(line.substr(name.size() + 1)) / 1024.0;
  return -1.0;
}

/// Makes VmHWM count from now on.
inline void forget_peak(pid_t process) {
  std::ofstream("/proc/" + std::to_string(process) + "/clear_refs") << "5";
}

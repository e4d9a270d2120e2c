// One line on stderr that says how far a long run is; silent unless stderr is a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace bench {

class progress {
 public:
  progress(std::string task, std::int64_t total);
  ~progress();  // wipes the line
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  void update(std::int64_t done);

 private:
  std::string task_;
  std::int64_t total_;
  bool shown_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace bench

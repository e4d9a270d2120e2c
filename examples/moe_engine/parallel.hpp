// Runs independent tasks on all cores: OpenMP where the compiler has it, else std::thread.
#pragma once

#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#else
#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace moe_engine {

/// How many threads `parallel_for` uses.
inline int num_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#endif
}

/// body(i) for i in 0..count-1, in any order, each in one thread. The next free thread takes the
/// next task, so put large tasks first or keep them small. Rethrows the first exception.
template <class Body>
void parallel_for(std::int64_t count, const Body& body) {
  std::exception_ptr failure;
#ifdef _OPENMP
  // Also for one task: within a team the dense algebra knows that it has one core.
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(moe_engine_failure)
      if (!failure) failure = std::current_exception();
    }
  }
#else
  std::mutex mutex;
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (std::int64_t i = 1; i < std::min<std::int64_t>(num_threads(), count); ++i)
      helpers.emplace_back(work);
  } catch (...) {  // no further thread, or no memory for it: those that run do all
  }
  work();
  for (std::thread& helper : helpers) helper.join();
#endif
  if (failure) std::rethrow_exception(failure);
}

/// The tokens of a task where rows are apart.
constexpr std::int64_t row_block = 64;

/// body(begin, end) for consecutive ranges of at most `size` that cover 0..count-1.
template <class Body>
void parallel_ranges(std::int64_t count, std::int64_t size, const Body& body) {
  parallel_for((count + size - 1) / size, [&](std::int64_t i) {
    const std::int64_t begin = i * size;
    body(begin, begin + size < count ? begin + size : count);
  });
}

}  // namespace moe_engine

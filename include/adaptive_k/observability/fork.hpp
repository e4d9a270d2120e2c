// Tells what has threads of its own that it is in a child of fork(), where they do not exist.
#pragma once

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// How often fork() led to this process since the first call: a child counts one more.
inline unsigned forks_so_far() noexcept {
#if defined(_WIN32)
  return 0;
#else
  static std::atomic<unsigned> forks{0};
  // Not getpid(): that is a system call, and a child may get the number of a process that is gone.
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
#endif
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

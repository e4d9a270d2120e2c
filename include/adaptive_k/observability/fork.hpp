// Detects fork(): objects with threads of their own do not have them in a child.
#pragma once

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// Forks between the process of the first call and this one: a child counts one more.
inline unsigned forks_so_far() noexcept {
#if defined(_WIN32)
  return 0;
#else
  static std::atomic<unsigned> forks{0};
  // Not getpid(): that is a system call, and process ids are reused.
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
#endif
}

}  // namespace detail

ADAPTIVE_K_NAMESPACE_END

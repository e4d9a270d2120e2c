// Threads that the system refuses, and memory: how many a test grants. In one source file a
// program.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace refused {

inline std::atomic<int> threads_left{1 << 30};
/// Allocations of this thread that still succeed.
inline thread_local long allocations_left = 1L << 60;

}  // namespace refused

// NOLINTBEGIN(misc-definitions-in-headers): one file of a program includes this
// What std::thread calls, before the system's own.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*body)(void*), void* argument) noexcept {
  if (refused::threads_left.fetch_sub(1) <= 0) return EAGAIN;
  using function = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto real = reinterpret_cast<function>(dlsym(RTLD_NEXT, "pthread_create"));
  return real(thread, attributes, body, argument);
}

void* operator new(std::size_t bytes) {
  if (refused::allocations_left-- <= 0) throw std::bad_alloc();
  void* const memory = std::malloc(bytes != 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
// Not inlined: g++ would see free() beside an operator new that it takes for the standard's.
__attribute__((noinline)) void operator delete(void* memory) noexcept {
  std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
// NOLINTEND(misc-definitions-in-headers)

// Runs a part of a test in a child of fork().
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

/// Whether a child of a process with threads may start its own: TSan ends it instead.
#if defined(__SANITIZE_THREAD__)
constexpr bool child_may_start_threads = false;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool child_may_start_threads = false;
#else
constexpr bool child_may_start_threads = true;
#endif
#else
constexpr bool child_may_start_threads = true;
#endif

/// 0 where the child did `what` without a failed expectation, -1 where it hangs for 60 s.
template <class What>
int in_child(What what) {
  const pid_t child = fork();
  if (child == 0) {
    what();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int result = 0;
  for (int i = 0; i < 6000; ++i) {
    if (waitpid(child, &result, WNOHANG) == child)
      return WIFEXITED(result) ? WEXITSTATUS(result) : 128;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, &result, 0);
  return -1;
}

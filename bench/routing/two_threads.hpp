// A pool of one: a second thread that waits for half of a call, as an engine's pool would.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

namespace routing_bench {

/// Waits for a condition as pools of engines do: for a while without giving the core away, as the
/// system takes longer to hand it back than a call takes.
template <class Condition>
void spin_until(const Condition& holds) {
  constexpr int spins = 1 << 10;
  for (int spin = 0; !holds();) {
    if (spin < spins)
      ++spin;
    else
      std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

class second_thread {
 public:
  second_thread() : thread_([this] { wait_and_work(); }) {}
  ~second_thread() {
    asked_.store(stop);
    thread_.join();
  }
  second_thread(const second_thread&) = delete;
  second_thread& operator=(const second_thread&) = delete;

  /// Runs `own` here and `other` there, and returns when both are done.
  template <class Own, class Other>
  void run(const Own& own, Other&& other) {
    work_ = std::forward<Other>(other);
    asked_.store(++turn_, std::memory_order_release);
    own();
    spin_until([this] { return done_.load(std::memory_order_acquire) == turn_; });
  }

 private:
  static constexpr long stop = -1;

  void wait_and_work() {
    for (long seen = 0;;) {
      long asked = seen;
      spin_until([&] { return (asked = asked_.load(std::memory_order_acquire)) != seen; });
      if (asked == stop) return;
      work_();
      seen = asked;
      done_.store(asked, std::memory_order_release);
    }
  }

  // What one thread waits for lies apart from what the other writes.
  std::function<void()> work_;
  long turn_ = 0;
  alignas(64) std::atomic<long> asked_ = 0;
  alignas(64) std::atomic<long> done_ = 0;
  alignas(64) std::thread thread_;
};

}  // namespace routing_bench

// A pool of one: a second thread that waits for half of a call, as an engine's pool would.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

namespace routing_bench {

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
    while (done_.load(std::memory_order_acquire) != turn_) std::this_thread::yield();
  }

 private:
  static constexpr long stop = -1;

  void wait_and_work() {
    for (long seen = 0;;) {
      const long asked = asked_.load(std::memory_order_acquire);
      if (asked == stop) return;
      if (asked == seen) {
        std::this_thread::yield();
        continue;
      }
      work_();
      seen = asked;
      done_.store(asked, std::memory_order_release);
    }
  }

  std::function<void()> work_;
  std::atomic<long> asked_ = 0;
  std::atomic<long> done_ = 0;
  long turn_ = 0;
  std::thread thread_;
};

}  // namespace routing_bench

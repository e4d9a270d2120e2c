// A sink of log lines that takes none until it is told to.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>

/// A sink that blocks from its first line on until it is let go; shared, since it may outlive the
/// logger.
class blocking_sink {
 public:
  std::function<void(std::string_view)> sink() const {
    return [state = state_](std::string_view line) {
      std::unique_lock<std::mutex> lock(state->mutex);
      ++state->calls;
      state->bytes += line.size();
      state->changed.notify_all();
      state->changed.wait(lock, [&] { return state->open; });
    };
  }
  void wait_until_called() const {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->changed.wait(lock, [&] { return state_->calls > 0; });
  }
  void let_go() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->open = true;
    state_->changed.notify_all();
  }
  int calls() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    return state_->calls;
  }
  std::size_t bytes() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    return state_->bytes;
  }
  /// Whether a thread of the logger still holds the sink.
  bool in_use() const { return state_.use_count() > 1; }

 private:
  struct state {
    std::mutex mutex;
    std::condition_variable changed;
    int calls = 0;
    std::size_t bytes = 0;
    bool open = false;
  };
  std::shared_ptr<state> state_ = std::make_shared<state>();
};

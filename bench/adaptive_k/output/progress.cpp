#include "bench/adaptive_k/output/progress.hpp"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace bench {

progress::progress(std::string task, std::int64_t total)
    : task_(std::move(task)),
      total_(total),
      shown_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  update(0);
}

progress::~progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void progress::update(std::int64_t done) {
  if (!shown_ || total_ <= 0) return;
  constexpr int width = 30;
  const double share = static_cast<double>(done) / static_cast<double>(total_);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  std::string bar(static_cast<std::size_t>(share * width), '#');
  bar.resize(width, '.');
  std::fprintf(stderr, "\r\033[K%s %s %3.0f%%", task_.c_str(), bar.c_str(), 100.0 * share);
  if (done > 0 && done < total_)
    std::fprintf(stderr, ", about %.0f s left", spent.count() * (1.0 - share) / share);
  std::fflush(stderr);
}

}  // namespace bench

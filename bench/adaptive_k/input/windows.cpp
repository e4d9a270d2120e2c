#include <fmt/format.h>

#include <algorithm>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/dataset.hpp"

namespace bench {
namespace {

constexpr int longest_default = 512;

}  // namespace

int window_length(int asked, int max_positions) {
  const int length = asked == 0 ? std::min(max_positions, longest_default) : asked;
  if (length < 2 || length > max_positions)
    throw failure(fmt::format("--context: {}, expected 2..{}, the model's own context", length,
                              max_positions));
  return length;
}

window_plan plan_windows(const dataset& data, int length, std::int64_t most) {
  window_plan plan;
  const auto total = static_cast<std::int64_t>(data.tokens.size());
  plan.length = length;
  plan.count = total / length;
  if (plan.count == 0)
    throw failure(
        fmt::format("{}: {} {}, fewer than one window of {}", data.path, total, data.unit, length));
  if (most > 0) plan.count = std::min(plan.count, most);
  plan.unused_tokens = total - plan.count * length + data.left_out;
  return plan;
}

}  // namespace bench

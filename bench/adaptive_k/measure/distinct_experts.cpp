#include "bench/adaptive_k/measure/distinct_experts.hpp"

#include <algorithm>
#include <bitset>

namespace bench {

distinct_experts::distinct_experts(int batch, int num_layers, int num_experts, int length)
    : batch_(batch),
      length_(length),
      words_((static_cast<std::size_t>(num_experts) + 63) / 64),
      touched_(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(length) * words_),
      windows_(static_cast<std::size_t>(num_layers)) {}

void distinct_experts::add_window(int layer, const std::int32_t* ids, int top_k) {
  const std::size_t row = static_cast<std::size_t>(length_) * words_;
  const auto first = touched_.begin() + static_cast<std::ptrdiff_t>(row) * layer;
  for (int t = 0; t < length_; ++t)
    for (int j = 0; j < top_k; ++j) {
      const std::int32_t id = ids[static_cast<std::ptrdiff_t>(t) * top_k + j];
      if (id < 0) continue;
      const std::size_t word =
          static_cast<std::size_t>(t) * words_ + static_cast<std::size_t>(id) / 64;
      first[static_cast<std::ptrdiff_t>(word)] |= std::uint64_t{1} << (id % 64);
    }
  int& windows = windows_[static_cast<std::size_t>(layer)];
  if (++windows < batch_) return;
  windows = 0;
  steps_ += static_cast<std::uint64_t>(length_);
  const auto last = first + static_cast<std::ptrdiff_t>(row);
  for (auto word = first; word != last; ++word) distinct_ += std::bitset<64>(*word).count();
  std::fill(first, last, 0);
}

std::optional<double> distinct_experts::mean_per_layer() const {
  if (steps_ == 0) return std::nullopt;
  return static_cast<double>(distinct_) / static_cast<double>(steps_);
}

}  // namespace bench

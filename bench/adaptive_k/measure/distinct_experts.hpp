// How many different experts a decode step touches: their weights are what it must read.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace bench {

/// A decode step of batch B takes the tokens at one position of B windows. Windows come in one
/// after the other, B at a time make a step for each position; those of an unfinished batch count
/// for nothing.
class distinct_experts {
 public:
  distinct_experts(int batch, int num_layers, int num_experts, int length);

  /// Adds the next window of `layer`: ids [length, top_k], negative where there is none. Every
  /// layer must get every window.
  void add_window(int layer, const std::int32_t* ids, int top_k);

  int batch() const noexcept { return batch_; }
  /// Mean distinct experts of a layer in a step; none before the first whole batch.
  std::optional<double> mean_per_layer() const;

 private:
  int batch_;
  int length_;
  std::size_t words_;                   // of 64 experts
  std::vector<std::uint64_t> touched_;  // [num_layers, length, words_] of the unfinished batch
  std::vector<int> windows_;            // [num_layers], in the unfinished batch
  std::uint64_t distinct_ = 0;          // over all finished steps and layers
  std::uint64_t steps_ = 0;             // finished steps, each layer's counted
};

}  // namespace bench

// Inference of a HuggingFace Mixtral model on the CPU, with the routing left to the caller.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "config.hpp"
#include "moe_layer.hpp"
#include "stacking.hpp"

namespace moe_engine {

struct timing {
  double moe_seconds = 0.0;    ///< router, routing and experts of all layers
  double total_seconds = 0.0;  ///< the whole forward pass
};

class engine {
 public:
  /// Reads config.json and model.safetensors (or model.safetensors.index.json and its shards).
  /// Throws std::runtime_error naming the file and the key or tensor that is wrong; also one that
  /// the engine does not know, since what it is for would be missing.
  static engine load(const std::filesystem::path& folder);

  engine(engine&&) noexcept;
  engine& operator=(engine&&) noexcept;
  ~engine();

  const model_config& config() const noexcept;
  /// The type that the experts are stored in: "F16", "BF16", "F32".
  const std::string& expert_dtype() const noexcept;
  /// What was found in the folder and left alone because it cannot matter; usually nothing.
  const std::vector<std::string>& warnings() const noexcept;

  /// tokens [num_sequences, length] -> logits [num_sequences * length, vocab_size]. Causal, each
  /// sequence on its own, positions from 0. Adds to `time` where given. Not for two threads at
  /// once: it uses all cores itself and keeps its buffers. `observe`, where given, sees what the
  /// experts put out.
  void forward(const std::int32_t* tokens, int num_sequences, int length,
               const route_function& route, float* logits, timing* time = nullptr,
               const observe_function& observe = {});

  /// The same with early exit and token merging as `hooks` decide, and what was computed added to
  /// `work` where given. Without hooks the bits are those of `forward`. A token that has left keeps
  /// its hidden state: later layers still make its key and value of it (both projections run), so
  /// that tokens behind it can attend to it, and nothing else; its logits are those it left with.
  /// A merged token takes over its representative's expert output and keeps its own residual.
  /// `route` sees the remaining tokens alone, in order, and is not called when there are none.
  void forward_stacked(const std::int32_t* tokens, int num_sequences, int length,
                       const route_function& route, const stacking_hooks& hooks, float* logits,
                       work_count* work = nullptr, timing* time = nullptr);

 private:
  struct implementation;
  explicit engine(std::unique_ptr<implementation> parts);
  std::unique_ptr<implementation> parts_;
};

}  // namespace moe_engine

// Inference of a HuggingFace Mixtral model on the CPU, with the routing left to the caller.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "config.hpp"
#include "moe_layer.hpp"

namespace moe_engine {

struct timing {
  double moe_seconds = 0.0;    ///< router, routing and experts of all layers
  double total_seconds = 0.0;  ///< the whole forward pass
};

class engine {
 public:
  /// Reads config.json and model.safetensors (or model.safetensors.index.json and its shards).
  /// Throws std::runtime_error naming the file and the key or tensor that is wrong.
  static engine load(const std::filesystem::path& folder);

  engine(engine&&) noexcept;
  engine& operator=(engine&&) noexcept;
  ~engine();

  const model_config& config() const noexcept;

  /// tokens [num_sequences, length] -> logits [num_sequences * length, vocab_size]. Causal, each
  /// sequence on its own, positions from 0. Adds to `time` where given. Not for two threads at
  /// once: it uses all cores itself and keeps its buffers. `observe`, where given, sees what the
  /// experts put out.
  void forward(const std::int32_t* tokens, int num_sequences, int length,
               const route_function& route, float* logits, timing* time = nullptr,
               const observe_function& observe = {});

 private:
  struct implementation;
  explicit engine(std::unique_ptr<implementation> parts);
  std::unique_ptr<implementation> parts_;
};

}  // namespace moe_engine

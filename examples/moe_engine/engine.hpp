// Inference of a HuggingFace mixture-of-experts model on the CPU, with the routing left to the
// caller.
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
  double moe_seconds = 0.0;    ///< router, routing and experts, shared ones too, of all MoE layers
  double total_seconds = 0.0;  ///< the whole forward pass
};

/// Texts in progress: the keys and values of what `engine::extend` has read of each. Of one engine.
class text_cache {
 public:
  explicit text_cache(int num_sequences) : lengths_(static_cast<std::size_t>(num_sequences), 0) {}

  int num_sequences() const noexcept { return static_cast<int>(lengths_.size()); }
  /// Tokens read of a text.
  int length(int sequence) const { return lengths_.at(static_cast<std::size_t>(sequence)); }

 private:
  friend class engine;
  std::vector<int> lengths_;
  std::vector<std::vector<float>> kv_;  // [num_layers * num_sequences], each [length, kv_width]
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

  /// Whether `extend` is there: other engines that stand in for this one may have none.
  static bool extends_texts() noexcept;
  /// Whether `forward` shows the routers' inputs and multiplies them by a policy's router head.
  static bool takes_router_heads() noexcept;

  /// Reads the next `counts[s]` tokens, 0 or more, of every text s of `cache`, which it extends by
  /// them: tokens, text after text [sum of counts] -> logits [sum of counts, vocab_size]. How a
  /// text is cut into calls, and which others are with it, changes no logit by more than rounding.
  /// Throws std::runtime_error where a text would exceed max_positions; the cache is then as
  /// before.
  void extend(text_cache& cache, const std::int32_t* tokens, const std::vector<int>& counts,
              const route_function& route, float* logits, timing* time = nullptr);

  /// `forward` with early exit and token merging as `hooks` decide, and what was computed added to
  /// `work` where given. Without hooks the bits are those of `forward`. A token that has left keeps
  /// its hidden state: later layers still make its key and value of it (both projections run), so
  /// that tokens behind it can attend to it, and nothing else; its logits are those it left with.
  /// A merged token takes over its representative's expert output, that of the shared experts too,
  /// and keeps its own residual. Tokens merge in MoE layers, counted as routing counts them; they
  /// may exit behind any layer, dense ones counted. `route` sees the remaining tokens alone, in
  /// order, and is not called when there are none.
  void forward_stacked(const std::int32_t* tokens, int num_sequences, int length,
                       const route_function& route, const stacking_hooks& hooks, float* logits,
                       work_count* work = nullptr, timing* time = nullptr);

 private:
  struct implementation;
  /// All layers and the head on the tokens that `read_tokens` took; `attend(layer, index)` fills
  /// `update` with the layer's attention.
  template <class Attend>
  void run_layers(std::int64_t num_tokens, const Attend& attend, const route_function& route,
                  float* logits, timing* time, const observe_function& observe);
  explicit engine(std::unique_ptr<implementation> parts);
  std::unique_ptr<implementation> parts_;
};

}  // namespace moe_engine

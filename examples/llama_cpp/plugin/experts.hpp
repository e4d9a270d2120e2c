// Runs a layer's experts for fewer slots, by a CPU backend of ggml: no kernel is written here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "moe_layer.hpp"

namespace adaptive_k_ggml {

/// Memory that only grows, aligned as ggml's buffers are.
class scratch {
 public:
  /// At least `bytes`; what was in it is lost.
  void* get(std::size_t bytes);
  template <class T>
  T* get(std::size_t number) {
    return static_cast<T*>(get(number * sizeof(T)));
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  std::size_t bytes_ = 0;
};

/// Executes parts of a graph. One per backend, used by one thread at a time, as backends are.
class expert_runner {
 public:
  /// `cpu` is used, not owned.
  explicit expert_runner(ggml_backend_t cpu) : cpu_(cpu) {}

  /// Nodes as they are. Where `logits` is among them, what it holds is copied to `kept_logits()`:
  /// later nodes may be computed in its place.
  ggml_status run(ggml_tensor* const* nodes, int num_nodes, ggml_tensor* logits = nullptr);

  /// [T, E], of the last `run` with logits.
  const float* kept_logits() const { return static_cast<const float*>(kept_logits_); }

  /// The layer's output from the first counts[t] experts of each token, [T], their weights
  /// multiplied by factors[t]. At full K these are the graph's own nodes. With one count for all
  /// tokens there are fewer slots; else the pairs of token and expert that remain are rows,
  /// gathered once.
  ggml_status run_experts(const moe_layer& layer, ggml_tensor* const* nodes,
                          const std::int32_t* counts, const float* factors);

 private:
  struct renamed {
    const ggml_tensor* old;
    ggml_tensor* now;
  };

  ggml_tensor* make(ggml_op op, ggml_type type, std::int64_t ne0, std::int64_t ne1,
                    std::int64_t ne2, void* data);
  ggml_tensor* replacement(ggml_tensor* source) const;
  ggml_tensor* look_at(ggml_tensor* source, std::int64_t ne0, std::int64_t ne1, std::size_t nb1,
                       std::size_t offset);
  void add(ggml_tensor* node) { nodes_.push_back(node); }
  void add_slots(const moe_layer& layer, std::int64_t slots, std::int64_t tokens);
  void write_output(const moe_layer& layer, ggml_tensor* sum);
  ggml_status run_same_count(const moe_layer& layer, int count, const float* factors);
  ggml_status run_rows(const moe_layer& layer, const std::int32_t* counts, const float* factors);
  ggml_status compute();
  void begin();

  ggml_backend_t cpu_;
  std::unique_ptr<ggml_context, decltype(&ggml_free)> context_{nullptr, ggml_free};
  ggml_cgraph* graph_ = nullptr;
  std::size_t graph_size_ = 0;
  std::deque<ggml_tensor> tensors_;  // stays where it is while it grows
  std::size_t num_tensors_ = 0;
  std::vector<ggml_tensor*> nodes_;
  std::vector<renamed> renamed_;
  void* kept_logits_ = nullptr;
  scratch logits_memory_, weights_memory_, ids_memory_, rows_memory_, input_memory_, output_memory_;
};

}  // namespace adaptive_k_ggml

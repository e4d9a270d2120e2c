// A trace: the router logits of a run, enough to say what a policy would save, not what it costs.
#pragma once

#include <adaptive_k/core/gating.hpp>
#include <cstdint>
#include <filesystem>
#include <moe_engine/safetensors.hpp>
#include <string>
#include <vector>

namespace bench {

struct trace_info {
  std::string model;
  int num_layers = 0;
  adaptive_k::gating gating;
  std::int64_t num_tokens = 0;  ///< a whole number of windows
  int window = 0;
  std::string dataset;
  std::string dataset_sha256;
};

/// Tensors `layer.{i}.router_logits` [T, E] float32; for models with one also
/// `layer.{i}.selection_bias` [E]. Metadata as in bench/docs/benchmark.md.
class trace_reader {
 public:
  /// Throws std::runtime_error naming the file, and the key or tensor that is missing or wrong.
  explicit trace_reader(const std::filesystem::path& file);
  explicit trace_reader(moe_engine::safetensors_file file);

  const trace_info& info() const noexcept { return info_; }
  /// [rows, E], from row `first` on.
  std::vector<float> logits(int layer, std::int64_t first, std::int64_t rows) const;
  /// Empty where the gating has none.
  std::vector<float> selection_bias(int layer) const;

 private:
  moe_engine::safetensors_file file_;
  trace_info info_;
};

/// What a run gave, layer by layer.
struct trace_values {
  std::vector<std::vector<float>> logits;  ///< [T, E] each
  std::vector<std::vector<float>> biases;  ///< [E] each where the gating has a selection bias
};

void write_trace(const std::filesystem::path& file, const trace_info& info, trace_values values);

}  // namespace bench

// Causal self-attention of one layer, with rotary positions and shared key-value heads.
#pragma once

#include <cstdint>
#include <vector>

#include "config.hpp"
#include "dense.hpp"

namespace moe_engine {

/// Rotation of every position: HuggingFace's rotate-half, the first half of a head's channels
/// paired with the second.
struct rotary_table {
  rotary_table(const model_config& config, int length);

  std::vector<float> cosine;  // [length, D / 2]
  std::vector<float> sine;    // [length, D / 2]
};

class attention_layer {
 public:
  attention_layer(const model_config& config,
                  const float* qkv /* [(num_heads + 2 * num_kv_heads) * D, H]: q, k, v */,
                  const float* o /* [H, num_heads * D] */);

  /// output [T, H] = attention(x [T, H]) of T = num_sequences * length tokens; the residual is not
  /// added. `buffer` keeps its memory from call to call.
  void forward(const float* x, int num_sequences, int length, const rotary_table& rotary,
               float* output, std::vector<float>& buffer) const;

  /// The same for some tokens only: output [R, H] of the tokens `rows` [R], ascending. Keys and
  /// values are made of all T tokens, queries and output of these alone. A row's bits do not
  /// depend on which other rows there are, as far as `dense` keeps rows apart.
  void forward_rows(const float* x, int num_sequences, int length, const rotary_table& rotary,
                    const std::vector<std::int64_t>& rows, float* output,
                    std::vector<float>& buffer) const;

 private:
  void rotate(float* token, int num_heads, const float* cosine, const float* sine) const;
  void attend_row(const float* q, const float* kv, int position, float* output) const;
  void attend(const float* qkv, int head, int first_query, int last_query, float* output) const;

  int num_heads_;
  int num_kv_heads_;
  int head_dim_;
  int window_;  // 0 is all
  dense qkv_;
  dense q_;  // parts of qkv_ again, packed for calls that need one without the other
  dense kv_;
  dense o_;
};

}  // namespace moe_engine

// Causal self-attention of one layer, with rotary positions, shared key-value heads, and biases and
// norms of queries and keys where the model has them.
#pragma once

#include <cstdint>
#include <vector>

#include "config.hpp"
#include "dense.hpp"

namespace moe_engine {

/// Rotation of every position: HuggingFace's rotate-half, the first half of a head's rotated
/// channels paired with the second.
struct rotary_table {
  rotary_table(const model_config& config, int length);

  std::vector<float> cosine;  // [length, rotary_dim / 2]
  std::vector<float> sine;    // [length, rotary_dim / 2]
};

/// Empty vectors are what the model does not have.
struct attention_weights {
  std::vector<float> qkv;       // [(num_heads + 2 * num_kv_heads) * D, H]: q, k, v
  std::vector<float> qkv_bias;  // [(num_heads + 2 * num_kv_heads) * D]
  std::vector<float> q_norm;    // [D] or [num_heads * D], as config.qk_norm says
  std::vector<float> k_norm;    // [D] or [num_kv_heads * D]
  std::vector<float> o;         // [H, num_heads * D]
  std::vector<float> o_bias;    // [H]
};

/// One token of a call on texts in progress: which text, and where in it.
struct token_place {
  int sequence;
  int position;
};

class attention_layer {
 public:
  attention_layer(const model_config& config, attention_weights weights);

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

  /// The same for tokens that continue texts: output [T, H] of x [T, H] at `places` [T].
  /// kv[sequence] holds the keys and values of the text before, [position, 2 * num_kv_heads * D],
  /// and has room for those of these tokens, which are added. A token's bits do not depend on how
  /// its text was cut into calls, as far as `dense` keeps rows apart.
  void extend(const float* x, const std::vector<token_place>& places, const rotary_table& rotary,
              std::vector<float>* kv, float* output, std::vector<float>& buffer) const;

  /// Floats that one position of one text has in `kv`.
  int kv_width() const noexcept { return kv_.outputs(); }

 private:
  void finish_queries(float* q, const rotary_table& rotary, std::int64_t position) const;
  void finish_keys_and_values(float* kv, const rotary_table& rotary, std::int64_t position) const;
  void normalize(float* heads, int num_heads, const std::vector<float>& weight) const;
  void rotate(float* heads, int num_heads, const rotary_table& rotary, std::int64_t position) const;
  void project_out(const float* attended, std::int64_t rows, float* output) const;
  void attend_row(const float* q, const float* kv, int position, float* output) const;
  void attend(const float* qkv, int head, int first_query, int last_query, float* output) const;

  int num_heads_;
  int num_kv_heads_;
  int head_dim_;
  int rotary_dim_;
  int window_;  // 0 is all
  query_key_norm norm_;
  float epsilon_;
  attention_weights weights_;  // without the matrices
  dense qkv_;
  dense q_;  // parts of qkv_ again, packed for calls that need one without the other
  dense kv_;
  dense o_;
};

}  // namespace moe_engine

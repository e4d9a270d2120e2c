// A whole Mixtral forward pass in double, token by token and loop by loop, to compare with.
#pragma once

#include <string>
#include <vector>

#include "small_model.hpp"

namespace small_model {

/// One head's attention of the token at `position` over `keys` and `values` (one row a token).
inline row attend(const row& q, const std::vector<row>& keys, const std::vector<row>& values,
                  const shape& s, int head, int position) {
  const auto size = static_cast<std::size_t>(s.head_dim);
  const auto q_at = static_cast<std::size_t>(head) * size;
  const auto kv_at = static_cast<std::size_t>(head / (s.heads / s.kv_heads)) * size;
  const int oldest = s.sliding_window == 0 ? 0 : std::max(0, position - s.sliding_window + 1);
  row result(size, 0.0);
  double sum = 0.0;
  for (int t = oldest; t <= position; ++t) {
    double score = 0.0;
    for (std::size_t i = 0; i < size; ++i)
      score += q[q_at + i] * keys[static_cast<std::size_t>(t)][kv_at + i];
    const double weight = std::exp(score / std::sqrt(static_cast<double>(s.head_dim)));
    sum += weight;
    for (std::size_t i = 0; i < size; ++i)
      result[i] += weight * values[static_cast<std::size_t>(t)][kv_at + i];
  }
  for (double& v : result) v /= sum;
  return result;
}

/// What early exit and token merging decided; empty lists are methods that are off.
struct decisions {
  std::vector<int> last_layer;                   // [length], that a token runs
  std::vector<std::vector<int>> representative;  // [layers][length]
};

/// Logits [length][vocab] of one sequence, with `k` experts for every token.
inline std::vector<row> naive_forward(const shape& s, const tensors& all,
                                      const std::vector<int>& tokens, int k,
                                      const decisions& decided = {}) {
  const auto weight = [&](const std::string& name) -> const std::vector<float>& {
    return all.at(name).values;
  };
  const auto hidden = static_cast<std::size_t>(s.hidden);
  const auto& embeddings = weight("model.embed_tokens.weight");
  std::vector<row> x;
  for (const int token : tokens) {
    const auto* begin = embeddings.data() + static_cast<std::size_t>(token) * hidden;
    x.emplace_back(begin, begin + hidden);
  }
  for (int l = 0; l < s.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    std::vector<row> keys;
    std::vector<row> values;
    std::vector<row> mixtures;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const int position = static_cast<int>(t);
      const row in = rms_norm(x[t], weight(p + "input_layernorm.weight"), 1e-5);
      row q = times(weight(p + "self_attn.q_proj.weight"), in);
      keys.push_back(times(weight(p + "self_attn.k_proj.weight"), in));
      values.push_back(times(weight(p + "self_attn.v_proj.weight"), in));
      row attended;
      for (int head = 0; head < s.kv_heads; ++head)
        rotate(keys.back(), static_cast<std::size_t>(head) * static_cast<std::size_t>(s.head_dim),
               s.head_dim, position, 1000.0);
      mixtures.emplace_back(hidden, 0.0);
      if (!decided.last_layer.empty() && decided.last_layer[t] < l) continue;
      for (int head = 0; head < s.heads; ++head) {
        rotate(q, static_cast<std::size_t>(head) * static_cast<std::size_t>(s.head_dim), s.head_dim,
               position, 1000.0);
        const row one = attend(q, keys, values, s, head, position);
        attended.insert(attended.end(), one.begin(), one.end());
      }
      const row update = times(weight(p + "self_attn.o_proj.weight"), attended);
      for (std::size_t i = 0; i < hidden; ++i) x[t][i] += update[i];
      const row normed = rms_norm(x[t], weight(p + "post_attention_layernorm.weight"), 1e-5);
      std::vector<row> outputs;
      for (int e = 0; e < s.experts; ++e) {
        const std::string n = p + "block_sparse_moe.experts." + std::to_string(e) + ".";
        outputs.push_back(expert(weight(n + "w1.weight"), weight(n + "w3.weight"),
                                 weight(n + "w2.weight"), normed));
      }
      mixtures.back() =
          mixture(times(weight(p + "block_sparse_moe.gate.weight"), normed), k, outputs);
      const auto from =
          decided.representative.empty()
              ? t
              : static_cast<std::size_t>(decided.representative[static_cast<std::size_t>(l)][t]);
      for (std::size_t i = 0; i < hidden; ++i) x[t][i] += mixtures[from][i];
    }
  }
  std::vector<row> logits;
  for (const row& r : x)
    logits.push_back(times(weight(s.tied ? "model.embed_tokens.weight" : "lm_head.weight"),
                           rms_norm(r, weight("model.norm.weight"), 1e-5)));
  return logits;
}

}  // namespace small_model

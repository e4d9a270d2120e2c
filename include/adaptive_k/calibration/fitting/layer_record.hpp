// What calibration keeps of a layer's full-K run: ranked weights, and the exact distortion of
// every smaller K under every mass exponent.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/host/router.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// Consecutive tokens of one MoE layer, as a full-K run computed them.
struct expert_output_block {
  int layer = 0;                        ///< counted from 0, MoE layers alone
  std::int64_t num_tokens = 0;          ///< of this block
  int hidden_size = 0;                  ///< H
  const float* logits = nullptr;        ///< [num_tokens, E], the router's
  const float* residual = nullptr;      ///< [num_tokens, H], what the layer's output is added to
  const float* outputs = nullptr;       ///< [num_tokens, K0, H], unweighted, in rank order
  const float* routing_bias = nullptr;  ///< [E], where the gating has a selection bias
  const float* input = nullptr;  ///< [num_tokens, H], what the router's matrix multiplies, or null
};

/// One layer's tokens. Memory: (5 K0 + 2) * 4 bytes a token, 4 (2 K0 + 2) without distortions, and
/// 4 H where the router's inputs are kept.
class layer_record {
 public:
  /// An empty record of one layer of `model`.
  explicit layer_record(const gating& model, bool keeps_inputs = false)
      : model_(model),
        scores_(model),
        keeps_inputs_(keeps_inputs),
        largest_output_(static_cast<std::size_t>(model.num_experts), 0.0f) {
    // Scores that neither sum to 1 nor are scaled: their sum is the share S_K0.
    if (scores_.kind == gating_kind::top_k_softmax) scores_.kind = gating_kind::softmax;
    scores_.renormalize = false;
    scores_.routed_scaling_factor = 1.0f;
  }

  /// K0.
  int top_k() const noexcept { return model_.top_k; }
  /// E.
  int num_experts() const noexcept { return model_.num_experts; }
  /// Tokens recorded so far.
  std::int64_t num_tokens() const noexcept { return static_cast<std::int64_t>(share_.size()); }
  /// Whether blocks came with the experts' outputs, so that distortions are known.
  bool has_distortion() const noexcept { return !parts_.empty() || model_.top_k == 1; }

  /// Whether the router's input of every token is kept.
  bool has_inputs() const noexcept { return hidden_size_ > 0; }
  /// H of the inputs; 0 without.
  int hidden_size() const noexcept { return hidden_size_; }
  /// The router's input of token `t`, [H].
  const float* input(std::int64_t t) const { return inputs_.data() + t * hidden_size_; }

  /// Renormalised top-K0 weights of token `t`, [K0], in rank order.
  const float* weights(std::int64_t t) const { return weights_.data() + t * top_k(); }
  /// Its top K0 experts, [K0], in rank order.
  const std::int32_t* experts(std::int64_t t) const { return experts_.data() + t * top_k(); }
  /// The sum of its top K0 scores: S_K0 of distortion_ref.
  float topk_share(std::int64_t t) const { return share_[static_cast<std::size_t>(t)]; }
  /// Its entropy over all E, nats.
  float softmax_entropy(std::int64_t t) const { return entropy_[static_cast<std::size_t>(t)]; }

  /// The largest magnitude in any recorded output of an expert; 0 where it has none.
  float largest_output(int expert) const {
    return largest_output_[static_cast<std::size_t>(expert)];
  }

  /// |y_K0 - y_k|^2 / |h + y_K0|^2 for k in 1..K0; 0 at K0.
  double distortion(std::int64_t t, int k, double mass_exponent) const {
    if (k >= top_k()) return 0.0;
    double kept = 0.0;
    for (int j = 0; j < k; ++j) kept += static_cast<double>(weights(t)[j]);
    const double stretch = std::pow(std::fmin(kept, 1.0), -mass_exponent) - 1.0;
    const float* part = parts_.data() + (t * (top_k() - 1) + k - 1) * 3;
    const double d = static_cast<double>(part[0]) - 2.0 * stretch * static_cast<double>(part[1]) +
                     stretch * stretch * static_cast<double>(part[2]);
    return d > 0.0 ? d : 0.0;
  }

  /// Adds a block with outputs. Throws std::runtime_error where the router refuses its logits, and
  /// where inputs are to be kept and the block has none.
  void add(const expert_output_block& block) {
    const std::int64_t first = num_tokens();
    add_logits(block.logits, block.num_tokens, block.routing_bias);
    for (std::int64_t slot = 0; slot < block.num_tokens * top_k(); ++slot) {
      float& largest = largest_output_[static_cast<std::size_t>(experts(first)[slot])];
      const float* output = block.outputs + slot * block.hidden_size;
      for (int c = 0; c < block.hidden_size; ++c)
        largest = std::fmax(largest, std::fabs(output[c]));
    }
    if (keeps_inputs_ && block.input == nullptr)
      throw std::runtime_error("recording: `input` of layer " + std::to_string(block.layer) +
                               " is null, expected the router's inputs, which a head is fitted to");
    if (keeps_inputs_) {
      hidden_size_ = block.hidden_size;
      inputs_.insert(inputs_.end(), block.input,
                     block.input + block.num_tokens * block.hidden_size);
    }
    if (top_k() == 1) return;
    const routed_batch own = routed(model_, block.logits, block.num_tokens, block.routing_bias);
    const auto width = static_cast<std::size_t>(block.hidden_size);
    std::vector<double> kept(width), dropped(width), total(width);
    for (std::int64_t t = 0; t < block.num_tokens; ++t) {
      const float* w = own.topk_weights.data() + t * top_k();
      const float* outputs = block.outputs + t * top_k() * block.hidden_size;
      const auto product = [&](int j, std::size_t c) {
        return static_cast<double>(w[j]) *
               static_cast<double>(outputs[static_cast<std::size_t>(j) * width + c]);
      };
      for (std::size_t c = 0; c < width; ++c) {
        kept[c] = dropped[c] = 0.0;
        for (int j = 0; j < top_k(); ++j) dropped[c] += product(j, c);
        total[c] =
            dropped[c] + static_cast<double>(
                             block.residual[t * block.hidden_size + static_cast<std::int64_t>(c)]);
      }
      double norm = 0.0;
      for (const double value : total) norm += value * value;
      const double scale = norm > 0.0 ? 1.0 / norm : 0.0;
      for (int k = 1; k < top_k(); ++k) {
        double dropped_squared = 0.0, cross = 0.0, kept_squared = 0.0;
        for (std::size_t c = 0; c < width; ++c) {
          const double moved = product(k - 1, c);
          kept[c] += moved;
          dropped[c] -= moved;
          dropped_squared += dropped[c] * dropped[c];
          cross += dropped[c] * kept[c];
          kept_squared += kept[c] * kept[c];
        }
        for (const double part : {dropped_squared, cross, kept_squared})
          parts_.push_back(static_cast<float>(part * scale));
      }
    }
  }

  /// Adds the tokens of `other`, a record of the same gating.
  void add(const layer_record& other) {
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(weights_, other.weights_);
    append(experts_, other.experts_);
    append(share_, other.share_);
    append(entropy_, other.entropy_);
    append(parts_, other.parts_);
    for (std::size_t e = 0; e < largest_output_.size(); ++e)
      largest_output_[e] = std::fmax(largest_output_[e], other.largest_output_[e]);
    append(inputs_, other.inputs_);
  }

  /// Adds tokens by their router logits alone, [num_tokens, E]; their distortions stay unknown.
  void add_logits(const float* logits, std::int64_t num_tokens, const float* routing_bias) {
    const routed_batch batch = routed(scores_, logits, num_tokens, routing_bias);
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const float* scores = batch.topk_weights.data() + t * top_k();
      double sum = 0.0;
      for (int j = 0; j < top_k(); ++j) sum += static_cast<double>(scores[j]);
      for (int j = 0; j < top_k(); ++j) {
        weights_.push_back(static_cast<float>(static_cast<double>(scores[j]) / sum));
        experts_.push_back(batch.topk_ids[static_cast<std::size_t>(t * top_k() + j)]);
      }
      share_.push_back(static_cast<float>(sum));
      entropy_.push_back(batch.signal[static_cast<std::size_t>(t)]);
    }
  }

 private:
  static routed_batch routed(const gating& model, const float* logits, std::int64_t num_tokens,
                             const float* routing_bias) {
    routing_extras extras;
    extras.routing_bias = routing_bias;
    routed_batch batch =
        router(model, k_policy::full())
            .route(0, logits_view<float>{logits, num_tokens, model.num_experts}, nullptr, extras);
    if (!batch.result.ok())
      throw std::runtime_error(std::string("recording: ") + batch.result.message());
    return batch;
  }

  gating model_;
  gating scores_;
  bool keeps_inputs_ = false;
  int hidden_size_ = 0;                // of inputs_
  std::vector<float> inputs_;          // [T, H], where they are kept
  std::vector<float> weights_;         // [T, K0], renormalised
  std::vector<std::int32_t> experts_;  // [T, K0]
  std::vector<float> share_;           // [T], S_K0
  std::vector<float> entropy_;         // [T], nats
  std::vector<float> largest_output_;  // [E]
  std::vector<float>
      parts_;  // [T, K0 - 1, 3]: |dropped|^2, dropped . kept, |kept|^2 over |h + y|^2
};

ADAPTIVE_K_NAMESPACE_END

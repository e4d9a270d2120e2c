// The forward pass with early exit and token merging.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine_parts.hpp"

namespace moe_engine {
namespace {

/// One forward pass: which tokens are still there, and what was computed.
class stacked_pass {
 public:
  stacked_pass(const model_config& config, int num_sequences, int length,
               const stacking_hooks& hooks)
      : config_(config),
        hooks_(hooks),
        num_sequences_(num_sequences),
        length_(length),
        hidden_(config.hidden_size),
        live_(static_cast<std::size_t>(std::int64_t{num_sequences} * length), 1),
        representative_(live_.size()),
        slot_(live_.size()) {
    update_rows();
  }

  bool can_exit() const { return static_cast<bool>(hooks_.early_exit.exits); }
  const std::vector<std::int64_t>& rows() const { return rows_; }

  /// Chooses who is routed: normed [T, H].
  void match(int layer, const float* normed) {
    for (std::size_t t = 0; t < live_.size(); ++t)
      representative_[t] = static_cast<std::int32_t>(t % static_cast<std::size_t>(length_));
    if (hooks_.merge) {
      adaptive_k::token_merging_metrics counted;
      for (std::int64_t s = 0; s < num_sequences_; ++s) {
        const std::int64_t first = s * length_;
        const adaptive_k::status status =
            hooks_.merge({layer, normed + first * hidden_, length_, static_cast<int>(hidden_),
                          live_.data() + first},
                         representative_.data() + first, counted);
        if (!status.ok()) refuse(layer, status.message());
        check_matching(layer, first);
      }
      work.matching += (counted.tokens + counted.comparisons) * static_cast<std::uint64_t>(hidden_);
    }
    routed_.clear();
    for (const std::int64_t t : rows_) {
      if (representative_of(t) != t) continue;
      slot_[static_cast<std::size_t>(t)] = static_cast<std::int64_t>(routed_.size());
      routed_.push_back(t);
    }
  }

  const std::vector<std::int64_t>& routed() const { return routed_; }

  /// The row of the expert stage's output that a live token takes.
  std::int64_t slot_of(std::int64_t token) const {
    return slot_[static_cast<std::size_t>(representative_of(token))];
  }

  /// Takes out who leaves; predicted [R, V] of `rows`. Their logits become final.
  void leave(int layer, const float* predicted, float* logits) {
    const std::int64_t vocab = config_.vocab_size;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const float* own = predicted + static_cast<std::int64_t>(r) * vocab;
      if (!hooks_.early_exit.exits(layer, rows_[r], own, config_.vocab_size)) continue;
      std::copy_n(own, vocab, logits + rows_[r] * vocab);
      live_[static_cast<std::size_t>(rows_[r])] = 0;
    }
    update_rows();
  }

  void count_attention() {
    const auto head_dim = static_cast<std::uint64_t>(config_.head_dim);
    const auto q_width = static_cast<std::uint64_t>(config_.num_heads) * head_dim;
    const auto kv_width = 2 * static_cast<std::uint64_t>(config_.num_kv_heads) * head_dim;
    work.projections += static_cast<std::uint64_t>(hidden_) *
                        (live_.size() * kv_width + rows_.size() * 2 * q_width);
    for (const std::int64_t t : rows_) {
      const auto seen = static_cast<std::uint64_t>(t % length_ + 1);
      const auto window = static_cast<std::uint64_t>(config_.sliding_window);
      work.attention += 2 * q_width * (window == 0 ? seen : std::min(seen, window));
    }
  }

  void count_moe(std::int64_t num_routed, std::uint64_t calls) {
    const auto hidden = static_cast<std::uint64_t>(hidden_);
    const auto routed = static_cast<std::uint64_t>(num_routed);
    const auto gate = config_.shared_expert_gate ? hidden : 0;
    work.expert_calls += calls;
    work.experts += calls * 3 * hidden * static_cast<std::uint64_t>(config_.intermediate_size);
    work.router += routed * hidden * static_cast<std::uint64_t>(config_.gating.num_experts);
    work.unrouted_mlps +=
        routed * (3 * hidden * static_cast<std::uint64_t>(config_.shared_intermediate_size) + gate);
  }

  void count_dense() {
    work.unrouted_mlps += rows_.size() * 3 * static_cast<std::uint64_t>(hidden_) *
                          static_cast<std::uint64_t>(config_.dense_intermediate_size);
  }

  work_count work;

 private:
  std::int64_t representative_of(std::int64_t token) const {
    return token / length_ * length_ + representative_[static_cast<std::size_t>(token)];
  }

  void update_rows() {
    rows_.clear();
    for (std::size_t t = 0; t < live_.size(); ++t)
      if (live_[t] != 0) rows_.push_back(static_cast<std::int64_t>(t));
  }

  [[noreturn]] static void refuse(int layer, const std::string& why) {
    throw std::runtime_error("merging of layer " + std::to_string(layer) + ": " + why);
  }

  void check_matching(int layer, std::int64_t first) const {
    for (std::int64_t t = first; t < first + length_; ++t) {
      if (live_[static_cast<std::size_t>(t)] == 0) continue;
      const std::int32_t own = representative_[static_cast<std::size_t>(t)];
      const bool is_earlier = own >= 0 && own <= t - first;
      if (!is_earlier || live_[static_cast<std::size_t>(first + own)] == 0 ||
          representative_[static_cast<std::size_t>(first + own)] != own)
        refuse(layer, "representative of position " + std::to_string(t - first) + " is " +
                          std::to_string(own) +
                          ", expected itself or an earlier, live position that has its own");
    }
  }

  const model_config& config_;
  const stacking_hooks& hooks_;
  std::int64_t num_sequences_;
  std::int64_t length_;
  std::int64_t hidden_;
  std::vector<std::uint8_t> live_;            // [T]
  std::vector<std::int32_t> representative_;  // [T], within the sequence
  std::vector<std::int64_t> slot_;            // [T], of those routed
  std::vector<std::int64_t> rows_;            // the live tokens, ascending
  std::vector<std::int64_t> routed_;          // those of them that are run
};

void gather(const float* from, const std::vector<std::int64_t>& rows, std::int64_t width,
            std::vector<float>& to) {
  to.resize(rows.size() * static_cast<std::size_t>(width));
  for (std::size_t r = 0; r < rows.size(); ++r)
    std::copy_n(from + rows[r] * width, width, to.data() + static_cast<std::int64_t>(r) * width);
}

void add_row(const float* from, std::int64_t width, float* to) {
  for (std::int64_t i = 0; i < width; ++i) to[i] += from[i];
}

}  // namespace

void engine::forward_stacked(const std::int32_t* tokens, int num_sequences, int length,
                             const route_function& route, const stacking_hooks& hooks,
                             float* logits, work_count* work, timing* time) {
  const auto begin_total = clock_type::now();
  implementation& p = *parts_;
  const model_config& config = p.config;
  p.check_lengths(num_sequences, length);
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  p.read_tokens(tokens, num_tokens);
  const std::int64_t hidden = config.hidden_size;
  const rotary_table& rotary = p.rotary_of(length);
  stacked_pass pass(config, num_sequences, length, hooks);
  std::vector<float> gathered;
  std::vector<float> predicted;
  double moe_seconds = 0.0;

  // Final norm and head of the live tokens.
  const auto predict = [&](float* target) {
    gather(p.residual.data(), pass.rows(), hidden, gathered);
    const auto count = static_cast<std::int64_t>(pass.rows().size());
    rms_norm(gathered.data(), count, p.norm, config.rms_norm_eps, p.normed.data());
    parallel_ranges(count, row_block, [&](std::int64_t begin, std::int64_t end) {
      p.head.multiply(p.normed.data() + begin * hidden, end - begin,
                      target + begin * config.vocab_size);
    });
    return static_cast<std::uint64_t>(count * hidden * config.vocab_size);
  };
  const auto predict_apart = [&] {
    predicted.resize(pass.rows().size() * static_cast<std::size_t>(config.vocab_size));
    return predict(predicted.data());
  };

  for (int i = 0; i < config.num_layers; ++i) {
    const layer& l = p.layers[static_cast<std::size_t>(i)];
    rms_norm(p.residual.data(), num_tokens, l.input_norm, config.rms_norm_eps, p.normed.data());
    // One way for a whole pass, so that no token's bits depend on whether others have left.
    if (pass.can_exit()) {
      l.attention.forward_rows(p.normed.data(), num_sequences, length, rotary, pass.rows(),
                               p.update.data(), p.attention_buffer);
    } else {
      l.attention.forward(p.normed.data(), num_sequences, length, rotary, p.update.data(),
                          p.attention_buffer);
    }
    for (std::size_t r = 0; r < pass.rows().size(); ++r)
      add_row(p.update.data() + static_cast<std::int64_t>(r) * hidden, hidden,
              p.residual.data() + pass.rows()[r] * hidden);
    pass.count_attention();

    rms_norm(p.residual.data(), num_tokens, l.post_attention_norm, config.rms_norm_eps,
             p.normed.data());
    if (l.moe) {
      const auto begin_moe = clock_type::now();
      pass.match(l.moe_index, p.normed.data());
      gather(p.normed.data(), pass.routed(), hidden, gathered);
      const auto num_routed = static_cast<std::int64_t>(pass.routed().size());
      l.moe->forward(l.moe_index, gathered.data(), num_routed, route, p.update.data(), p.workspace);
      moe_seconds += seconds_since(begin_moe);
      for (const std::int64_t t : pass.rows())
        add_row(p.update.data() + pass.slot_of(t) * hidden, hidden, p.residual.data() + t * hidden);
      pass.count_moe(num_routed, num_routed == 0 ? 0 : p.workspace.tokens.size());
    } else {
      gather(p.normed.data(), pass.rows(), hidden, gathered);
      const auto live = static_cast<std::int64_t>(pass.rows().size());
      l.dense->forward(gathered.data(), live, p.update.data());
      for (std::int64_t r = 0; r < live; ++r)
        add_row(p.update.data() + r * hidden, hidden,
                p.residual.data() + pass.rows()[static_cast<std::size_t>(r)] * hidden);
      pass.count_dense();
    }

    if (i + 1 < config.num_layers && pass.can_exit() &&
        (!hooks.early_exit.asks || hooks.early_exit.asks(i))) {
      pass.work.exit_heads += predict_apart();
      pass.leave(i, predicted.data(), logits);
    }
  }
  if (pass.rows().size() == static_cast<std::size_t>(num_tokens)) {
    pass.work.head += predict(logits);
  } else {
    pass.work.head += predict_apart();
    for (std::size_t r = 0; r < pass.rows().size(); ++r)
      std::copy_n(predicted.data() + static_cast<std::int64_t>(r) * config.vocab_size,
                  config.vocab_size, logits + pass.rows()[r] * config.vocab_size);
  }
  if (work != nullptr) *work += pass.work;
  if (time != nullptr) {
    time->moe_seconds += moe_seconds;
    time->total_seconds += seconds_since(begin_total);
  }
}

}  // namespace moe_engine

// How long a model that goes on greedily from a prompt says what it says under full K.
#pragma once

#include <adaptive_k/host/router.hpp>
#include <cstdint>
#include <moe_engine/engine.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"

namespace bench {

struct continuation_lengths {
  int prompts = 64;        ///< at most: the starts of that many windows, spread evenly
  int prompt_tokens = 64;  ///< of each
  int new_tokens = 128;    ///< that follow
};

/// Of one routing.
struct continuation_figures {
  std::string name;
  double mean_k = 0.0;      ///< over prompts and continuations
  std::vector<int> agreed;  ///< by prompt: new tokens before the first that differs from full K's
  double median = 0.0;
  double never_differs = 0.0;  ///< share of the prompts
};

/// "" where the model and the windows have room for them, else what is missing.
std::string why_no_continuations(const moe_engine::model_config& model, const window_plan& windows,
                                 const continuation_lengths& lengths);

/// The prompts of a text, and how full K goes on: the likeliest token each time, the lower id among
/// equals, read with a cache of keys and values.
class continuations {
 public:
  /// Throws std::runtime_error where the router refuses, or `why_no_continuations` has a reason.
  continuations(moe_engine::engine& model, const dataset& data, const window_plan& windows,
                const adaptive_k::router& full, const continuation_lengths& lengths);

  int num_prompts() const noexcept { return num_prompts_; }
  const continuation_lengths& lengths() const noexcept { return lengths_; }
  /// [num_prompts, prompt_tokens + new_tokens]
  const std::vector<std::int32_t>& tokens() const noexcept { return tokens_; }

  /// Compares `with`. Up to its first difference a routing reads what full K wrote, so one pass
  /// over full K's continuation tells where that is. Full K itself differs nowhere but for
  /// rounding: its own figures are the control.
  continuation_figures compare(std::string name, const adaptive_k::router& with) const;

 private:
  int at_once(int length) const;

  moe_engine::engine& model_;
  continuation_lengths lengths_;
  int num_prompts_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace bench

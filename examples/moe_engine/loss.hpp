// What a model's logits say about the tokens that came next.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace moe_engine {

/// -ln p(token) in nats under softmax(logits [vocab_size]).
double token_loss(const float* logits, int vocab_size, std::int32_t token);

/// Losses in nats of the last length - 1 tokens of each window, given those before:
/// tokens [num_windows, length] -> [num_windows * (length - 1)]. `windows_at_once` bounds memory.
std::vector<double> window_losses(engine& model, const std::int32_t* tokens,
                                  std::int64_t num_windows, int length, const route_function& route,
                                  int windows_at_once = 16, timing* time = nullptr);

}  // namespace moe_engine

#include "stacking.hpp"

#include <stdexcept>
#include <string>
#include <vector>

namespace moe_engine {

exit_hook exit_with(const adaptive_k::early_exit_policy& policy,
                    adaptive_k::early_exit_metrics* metrics) {
  const adaptive_k::status valid = validate(policy);
  if (!valid.ok()) throw std::runtime_error(std::string("early exit: ") + valid.message());
  return {[policy](int layer) { return policy.asks(layer); },
          [policy, metrics](int layer, std::int64_t, const float* logits, int vocab_size) {
            const float confidence = adaptive_k::exit_confidence(policy.signal, logits, vocab_size);
            const bool leaves = adaptive_k::exits(policy, layer, confidence);
            if (metrics != nullptr) metrics->count(layer, confidence, leaves);
            return leaves;
          }};
}

merge_function merge_with(const adaptive_k::token_merging_policy& policy,
                          adaptive_k::token_merging_metrics* metrics) {
  const adaptive_k::status valid = validate(policy);
  if (!valid.ok()) throw std::runtime_error(std::string("token merging: ") + valid.message());
  return [policy, metrics, sizes = std::vector<std::int32_t>(), squares = std::vector<double>()](
             const merge_input& input, std::int32_t* representative,
             adaptive_k::token_merging_metrics& counted) mutable {
    sizes.resize(static_cast<std::size_t>(input.length));
    squares.resize(sizes.size());
    adaptive_k::token_merging_metrics own;
    const adaptive_k::status result =
        match_tokens(policy, input.x, input.length, input.hidden_size,
                     {representative, sizes.data(), squares.data()}, &own, input.live);
    counted += own;
    if (metrics != nullptr) *metrics += own;
    return result;
  };
}

}  // namespace moe_engine

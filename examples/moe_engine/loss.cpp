#include "loss.hpp"

#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace moe_engine {

double token_loss(const float* logits, int vocab_size, std::int32_t token) {
  const double largest = *std::max_element(logits, logits + vocab_size);
  double sum = 0.0;
  for (int i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return std::log(sum) + largest - static_cast<double>(logits[token]);
}

std::vector<double> window_losses(engine& model, const std::int32_t* tokens,
                                  std::int64_t num_windows, int length, const route_function& route,
                                  int windows_at_once, timing* time) {
  const int predictions = length - 1;
  const int vocab = model.config().vocab_size;
  std::vector<double> losses(static_cast<std::size_t>(num_windows * predictions));
  std::vector<std::int32_t> context;  // each window without its last token
  std::vector<float> logits;
  for (std::int64_t first = 0; first < num_windows; first += windows_at_once) {
    const auto count =
        static_cast<int>(std::min<std::int64_t>(windows_at_once, num_windows - first));
    context.clear();
    for (int w = 0; w < count; ++w) {
      const std::int32_t* window = tokens + (first + w) * length;
      context.insert(context.end(), window, window + predictions);
    }
    logits.resize(context.size() * static_cast<std::size_t>(vocab));
    model.forward(context.data(), count, predictions, route, logits.data(), time);
    parallel_for(count, [&](std::int64_t w) {
      for (std::int64_t i = 0; i < predictions; ++i)
        losses[static_cast<std::size_t>((first + w) * predictions + i)] =
            token_loss(logits.data() + (w * predictions + i) * vocab, vocab,
                       tokens[(first + w) * length + i + 1]);
    });
  }
  return losses;
}

}  // namespace moe_engine

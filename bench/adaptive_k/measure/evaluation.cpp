#include "bench/adaptive_k/measure/evaluation.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "bench/adaptive_k/output/progress.hpp"

namespace bench {
namespace {

moe_engine::route_function route_of(variant& routing) {
  return {[&routing](int layer, const adaptive_k::logits_view<float>& logits,
                     const adaptive_k::routing_output<>& output,
                     const adaptive_k::routing_extras& extras) {
            return routing.route(layer, logits, output, extras);
          },
          routing.router()};
}

/// One batch of windows, and where its logits go.
class batch_run {
 public:
  batch_run(moe_engine::engine& model, int length, int most_windows)
      : model_(model),
        length_(length),
        vocab_size_(model.config().vocab_size),
        window_logits_(static_cast<std::ptrdiff_t>(length) * vocab_size_),
        full_(static_cast<std::size_t>(window_logits_) * static_cast<std::size_t>(most_windows)),
        logits_{std::vector<float>(full_.size()), std::vector<float>(full_.size())} {}

  void set_tokens(const std::int32_t* tokens, int num_windows) {
    tokens_ = tokens;
    num_windows_ = num_windows;
  }

  void forward(evaluated& routing, std::size_t buffer) {
    moe_engine::timing time;
    model_.forward(tokens_, num_windows_, length_, route_of(routing.routing),
                   logits_[buffer].data(), &time);
    routing.moe_seconds.push_back(time.moe_seconds);
    routing.total_seconds.push_back(time.total_seconds);
    routing.routing.count_distinct(num_windows_);
  }

  void warm_up(const adaptive_k::router& router) {
    model_.forward(tokens_, num_windows_, length_, moe_engine::route_with(router),
                   logits_[0].data());
  }

  /// The logits of `buffer` become what the others are compared with.
  void take_as_full(std::size_t buffer) {
    const int rows = num_windows_ * length_;
    for (std::ptrdiff_t row = 0; row < rows; ++row)
      log_softmax(logits_[buffer].data() + row * vocab_size_, vocab_size_,
                  full_.data() + row * vocab_size_);
  }

  void compare(evaluated& routing, std::size_t buffer) {
    for (std::ptrdiff_t w = 0; w < num_windows_; ++w)
      add_window(full_.data() + w * window_logits_, logits_[buffer].data() + w * window_logits_,
                 tokens_ + w * length_, length_, vocab_size_, routing.result);
  }

 private:
  moe_engine::engine& model_;
  int length_;
  int vocab_size_;
  std::ptrdiff_t window_logits_;  // of one window
  const std::int32_t* tokens_ = nullptr;
  int num_windows_ = 0;
  std::vector<double> full_;      // log-probabilities [windows, length, vocab_size]
  std::vector<float> logits_[2];  // likewise
};

}  // namespace

int windows_at_once(const moe_engine::model_config& model, int length) {
  constexpr double most_bytes = 256e6;
  const double bytes = static_cast<double>(length) * model.vocab_size * sizeof(float);
  return std::clamp(static_cast<int>(most_bytes / bytes), 1, 16);
}

void evaluate(moe_engine::engine& model, const dataset& data, const window_plan& plan,
              std::vector<evaluated>& routings) {
  const int at_once = windows_at_once(model.config(), plan.length);
  for (evaluated& each : routings) each.routing.prepare(model.config().num_moe_layers, plan.length);
  batch_run run(model, plan.length, at_once);
  progress line("benchmark", plan.count);
  for (std::int64_t first = 0, batch = 0; first < plan.count; first += at_once, ++batch) {
    const auto windows = static_cast<int>(std::min<std::int64_t>(at_once, plan.count - first));
    run.set_tokens(data.tokens.data() + first * plan.length, windows);
    if (batch == 0) run.warm_up(routings[0].routing.router());

    const std::size_t leader = batch % 2 == 0 ? 0 : 1;
    run.forward(routings[leader], leader);
    run.forward(routings[1 - leader], 1 - leader);
    run.take_as_full(0);
    run.compare(routings[0], 0);
    run.compare(routings[1], 1);
    for (std::size_t i = 2; i < routings.size(); ++i) {
      run.forward(routings[i], 1);
      run.compare(routings[i], 1);
    }
    line.update(first + windows);
  }
}

}  // namespace bench

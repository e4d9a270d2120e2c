#include "bench/adaptive_k/measure/variant.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

#include "bench/adaptive_k/failure.hpp"

namespace bench {

variant::variant(std::string name, adaptive_k::router adaptive, adaptive_k::router full,
                 k_assignment assignment, std::uint64_t seed)
    : name_(std::move(name)),
      adaptive_(std::move(adaptive)),
      full_(std::move(full)),
      assignment_(assignment),
      rng_(seed) {
  for (const adaptive_k::router* router : {&adaptive_, &full_})
    if (!router->validity().ok()) throw failure(name_ + ": " + router->validity().message());
}

void variant::prepare(int num_layers, int length) {
  length_ = length;
  metrics_.assign(static_cast<std::size_t>(num_layers), {});
  last_.assign(static_cast<std::size_t>(num_layers), {});
  distinct_.clear();
  for (const int batch : decode_batches)
    distinct_.emplace_back(batch, num_layers, adaptive_.model().num_experts, length);
}

adaptive_k::status variant::route(int layer, const adaptive_k::logits_view<float>& logits,
                                  const adaptive_k::routing_output<>& output,
                                  const adaptive_k::routing_extras& extras) {
  const auto tokens = static_cast<std::size_t>(logits.num_tokens);
  adaptive_k::routing_metrics& total = metrics_[static_cast<std::size_t>(layer)];
  adaptive_k::routing_metrics call;
  adaptive_k::routing_metrics* metrics = observer_ ? &call : &total;
  last_call& last = last_[static_cast<std::size_t>(layer)];
  last.counts.resize(tokens);
  last.signal.resize(tokens);
  adaptive_k::routing_output<> own = output;
  own.topk_counts = last.counts.data();
  own.signal = last.signal.data();

  const auto start = std::chrono::steady_clock::now();
  adaptive_k::status result;
  if (assignment_ == k_assignment::chosen) {
    result = adaptive_.route(layer, logits, own, metrics, extras);
  } else {
    result = adaptive_.route(layer, logits, own, nullptr, extras);
    if (!result.ok()) return result;
    dealt_.assign(last.counts.begin(), last.counts.end());
    assign_counts(assignment_, dealt_, last.signal, adaptive_.policy(layer).signal, rng_);
    adaptive_k::routing_extras limited = extras;
    limited.k_min = dealt_.data();
    limited.k_max = dealt_.data();
    result = full_.route(layer, logits, own, metrics, limited);
  }
  if (!result.ok()) return result;
  if (observer_) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    total += call;
    observer_(
        {layer, call, took.count(), last.signal.data(), last.counts.data(), logits.num_tokens});
  }
  if (output.topk_counts != nullptr)
    std::copy(last.counts.begin(), last.counts.end(), output.topk_counts);
  if (output.signal != nullptr) std::copy(last.signal.begin(), last.signal.end(), output.signal);
  const auto slots = static_cast<std::ptrdiff_t>(tokens) * adaptive_.model().top_k;
  last.ids.assign(output.topk_ids, output.topk_ids + slots);
  return result;
}

void variant::count_distinct(std::int64_t num_windows) {
  const int top_k = adaptive_.model().top_k;
  for (distinct_experts& steps : distinct_)
    for (std::size_t layer = 0; layer < last_.size(); ++layer)
      for (std::int64_t w = 0; w < num_windows; ++w)
        steps.add_window(static_cast<int>(layer), last_[layer].ids.data() + w * length_ * top_k,
                         top_k);
}

adaptive_k::routing_metrics variant::total() const {
  adaptive_k::routing_metrics sum;
  for (const adaptive_k::routing_metrics& layer : metrics_) sum += layer;
  return sum;
}

}  // namespace bench

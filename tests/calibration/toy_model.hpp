// A model for the calibrator that needs no files: routers and experts of random vectors, whose
// "KL" is known: the sum over layers of a weight times the mean distortion of the layer's output.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "inputs.hpp"

struct toy_text {
  std::uint64_t seed = 1;
  std::int64_t windows = 24;
  std::vector<double> layer_weights = {};  ///< instead of the model's, as a text of another kind
};

class toy_model {
 public:
  static constexpr int length = 64;
  static constexpr int hidden = 12;

  toy_model(int num_experts, int top_k, std::vector<double> layer_weights, double spread = 1.5)
      : weights_(std::move(layer_weights)), spread_(spread) {
    gating_.num_experts = num_experts;
    gating_.top_k = top_k;
    inputs::sequence numbers(99);
    for (std::size_t i = 0; i < weights_.size() * static_cast<std::size_t>(num_experts * hidden);
         ++i)
      experts_.push_back(uniform(numbers));
  }

  /// Sigmoid scores, and a bias that selects: of the expert's number, so that it matters.
  void select_by_bias() {
    gating_.kind = adaptive_k::gating_kind::sigmoid;
    gating_.selection_bias = true;
    for (int e = 0; e < gating_.num_experts; ++e)
      bias_.push_back(0.2f * static_cast<float>(e * 7 % 5));
  }

  /// Makes one expert's output larger.
  void enlarge(int layer, int expert, float by) {
    for (int c = 0; c < hidden; ++c)
      experts_[static_cast<std::size_t>((layer * gating_.num_experts + expert) * hidden + c)] *= by;
  }
  float largest_output(int layer, int expert) const {
    float largest = 0.0f;
    for (int c = 0; c < hidden; ++c)
      largest = std::fmax(largest, std::fabs(experts_[static_cast<std::size_t>(
                                       (layer * gating_.num_experts + expert) * hidden + c)]));
    return largest;
  }

  /// The router's inputs, whose first number is ln |h + y_K0|^2: what no logit tells.
  void give_inputs() { gives_inputs_ = true; }

  const adaptive_k::gating& router_gating() const { return gating_; }
  int num_layers() const { return static_cast<int>(weights_.size()); }
  int window_length(const toy_text&) const { return length; }
  std::int64_t num_windows(const toy_text& text) const { return text.windows; }

  std::vector<adaptive_k::window_outcome> run(const toy_text& text, adaptive_k::window_range range,
                                              const adaptive_k::layer_route& route,
                                              const adaptive_k::block_observer& observe) {
    ++runs;
    std::vector<adaptive_k::window_outcome> outcomes(static_cast<std::size_t>(range.count));
    for (std::int64_t w = 0; w < range.count; ++w)
      for (int layer = 0; layer < num_layers(); ++layer)
        outcomes[static_cast<std::size_t>(w)].kl +=
            (text.layer_weights.empty() ? weights_
                                        : text.layer_weights)[static_cast<std::size_t>(layer)] *
            window(text, range.first + w, layer, route, observe);
    for (auto& outcome : outcomes) {
      outcome.nll = 1.0 + outcome.kl;
      outcome.agreement = 1.0 - outcome.kl;
    }
    return outcomes;
  }

  int runs = 0;

 private:
  static float uniform(inputs::sequence& numbers) {
    return static_cast<float>(numbers.between(-1000, 1000)) / 1000.0f;
  }

  /// Mean of |y_K0 - y_k|^2 / |h + y_K0|^2 over the window's tokens, in double.
  double window(const toy_text& text, std::int64_t index, int layer,
                const adaptive_k::layer_route& route, const adaptive_k::block_observer& observe) {
    const int experts = gating_.num_experts, top_k = gating_.top_k;
    inputs::sequence numbers(text.seed * 1000003 + static_cast<std::uint64_t>(index * 64 + layer));
    std::vector<float> logits, residual;
    for (int t = 0; t < length; ++t) {
      const auto sure = static_cast<float>(spread_ * numbers.between(1, 30) / 10.0);
      for (int e = 0; e < experts; ++e) logits.push_back(sure * uniform(numbers));
      for (int c = 0; c < hidden; ++c) residual.push_back(2.0f * uniform(numbers));
    }
    adaptive_k::logits_view<float> view = {logits.data(), length, experts};
    adaptive_k::routing_extras extras;
    if (!bias_.empty()) extras.routing_bias = bias_.data();
    const auto full =
        adaptive_k::router(gating_, adaptive_k::k_policy::full()).route(0, view, nullptr, extras);
    const auto output = [&](int id, int c) {
      return experts_[static_cast<std::size_t>((layer * experts + id) * hidden + c)];
    };
    std::vector<float> input, columns;
    for (int t = 0; gives_inputs_ && t < length; ++t) {
      double norm = 0.0;
      for (int c = 0; c < hidden; ++c) {
        double y = static_cast<double>(residual[static_cast<std::size_t>(t * hidden + c)]);
        for (auto at = static_cast<std::size_t>(t * top_k);
             at < static_cast<std::size_t>((t + 1) * top_k); ++at)
          y += static_cast<double>(full.topk_weights[at] * output(full.topk_ids[at], c));
        norm += y * y;
      }
      input.push_back(static_cast<float>(std::log(norm)));
      for (int c = 1; c < hidden; ++c) input.push_back(uniform(numbers));
    }
    if (gives_inputs_ && route.heads() != nullptr && route.heads()->reads_head(layer)) {
      const adaptive_k::distortion_ref& policy = route.heads()->policy(layer).distortion;
      for (int t = 0; t < length; ++t)
        for (int j = 0; j < top_k - 1; ++j) {
          columns.push_back(0.0f);
          for (int c = 0; c < hidden; ++c)
            columns.back() +=
                policy.head[j * hidden + c] * input[static_cast<std::size_t>(t * hidden + c)];
        }
      view.head = columns.data();
    }
    std::vector<std::int32_t> ids(full.topk_ids), counts(length);
    std::vector<float> w(full.topk_weights);
    const auto result = bias_.empty()
                            ? route(layer, view, {ids.data(), w.data(), counts.data()})
                            : route(layer, view, {ids.data(), w.data(), counts.data()}, extras);
    if (!result.ok()) throw std::runtime_error(result.message());
    if (observe) {
      std::vector<float> outputs;
      for (int i = 0; i < length * top_k; ++i)
        for (int c = 0; c < hidden; ++c)
          outputs.push_back(output(full.topk_ids[static_cast<std::size_t>(i)], c));
      observe({layer, length, hidden, logits.data(), residual.data(), outputs.data(),
               extras.routing_bias, gives_inputs_ ? input.data() : nullptr});
    }
    double mean = 0.0;
    for (int t = 0; t < length; ++t) {
      double error = 0.0, norm = 0.0;
      for (int c = 0; c < hidden; ++c) {
        double own = 0.0, other = 0.0;
        for (int j = 0; j < top_k; ++j) {
          const auto at = static_cast<std::size_t>(t * top_k + j);
          own += static_cast<double>(full.topk_weights[at] * output(full.topk_ids[at], c));
          if (j < counts[static_cast<std::size_t>(t)])
            other += static_cast<double>(w[at] * output(ids[at], c));
        }
        const double h = static_cast<double>(residual[static_cast<std::size_t>(t * hidden + c)]);
        error += (own - other) * (own - other);
        norm += (h + own) * (h + own);
      }
      mean += error / norm / length;
    }
    return mean;
  }

  adaptive_k::gating gating_;
  std::vector<double> weights_;
  double spread_;
  bool gives_inputs_ = false;
  std::vector<float> experts_;
  std::vector<float> bias_;
};

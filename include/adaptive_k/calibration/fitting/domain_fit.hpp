// How the recorded tokens of a layer look to its router: the domain of a policy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/config.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/core/signal.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace detail {

/// The signal of a recorded token, as a router reports it.
inline double recorded_signal(const layer_record& record, std::int64_t t, signal_kind signal) {
  const float* w = record.weights(t);
  const auto weight = [&](int j) { return static_cast<double>(j < record.top_k() ? w[j] : 0.0f); };
  switch (signal) {
    case signal_kind::none:
      break;
    case signal_kind::softmax_entropy:
      return static_cast<double>(record.softmax_entropy(t));
    case signal_kind::normalized_entropy:
      return record.num_experts() == 1
                 ? 0.0
                 : static_cast<double>(record.softmax_entropy(t)) / std::log(record.num_experts());
    case signal_kind::topk_entropy: {
      double entropy = 0.0;
      for (int j = 0; j < record.top_k(); ++j)
        if (weight(j) > 0.0) entropy -= weight(j) * std::log(weight(j));
      return entropy;
    }
    case signal_kind::topk_mass:
      return weight(0);
    case signal_kind::score_ratio:
      return weight(0) > 0.0 ? std::fmin(weight(1) / weight(0), 1024.0) : 1024.0;
    case signal_kind::margin:
      return weight(0) - weight(1);
  }
  return 0.0;
}

/// Values that `part` of all lie below and above, [least, most].
inline void quantiles(std::vector<double>& values, double part, float& least, float& most) {
  std::sort(values.begin(), values.end());
  const auto cut = static_cast<std::size_t>(part * static_cast<double>(values.size()));
  least = static_cast<float>(values[cut]);
  most = static_cast<float>(values[values.size() - 1 - cut]);
}

}  // namespace detail

/// The bounds that all but `part` of a layer's recorded tokens keep, at each end of the signal and
/// of the first share, 0 <= part < 0.5. Without tokens none are given.
inline domain_bounds fit_domain(const layer_record& record, signal_kind signal,
                                double part = 0.005) {
  domain_bounds domain;
  if (record.num_tokens() == 0) return domain;
  std::vector<double> signals, shares;
  for (std::int64_t t = 0; t < record.num_tokens(); ++t) {
    signals.push_back(detail::recorded_signal(record, t, signal));
    shares.push_back(static_cast<double>(record.weights(t)[0]));
  }
  detail::quantiles(signals, part, domain.signal_least, domain.signal_most);
  detail::quantiles(shares, part, domain.first_share_least, domain.first_share_most);
  domain.first_share_most = std::fmin(domain.first_share_most, 1.0f);
  domain.given = true;
  return domain;
}

ADAPTIVE_K_NAMESPACE_END

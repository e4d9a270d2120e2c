// Which experts may be super experts: those whose outputs are far larger than all others'.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "adaptive_k/calibration/fitting/layer_record.hpp"
#include "adaptive_k/config.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

/// An expert whose output stands out.
struct super_expert {
  int layer = 0;           ///< counted from 0, MoE layers alone
  int expert = 0;          ///< its id
  double largest = 0.0;    ///< the largest magnitude in any of its recorded outputs
  double of_median = 0.0;  ///< that over the median of all experts of all layers
};

/// What makes an expert one. The first two are arXiv 2507.23279's, which always finds somebody; the
/// third leaves out experts that are merely the largest.
struct super_expert_criterion {
  double percentile = 0.995;       ///< above this part of all experts of all layers
  double share_of_largest = 0.1;   ///< and above this share of the largest
  double times_the_median = 10.0;  ///< and above this many times the median
};

/// Experts that were recorded with their outputs, by that criterion, the largest first; at most
/// max_super_experts a layer. None where no outputs were recorded. Whether the loss of one really
/// breaks the model is not tested here.
inline std::vector<super_expert> find_super_experts(const std::vector<layer_record>& records,
                                                    const super_expert_criterion& criterion = {}) {
  std::vector<super_expert> all;
  for (std::size_t l = 0; l < records.size(); ++l)
    for (int e = 0; e < records[l].num_experts(); ++e)
      if (records[l].largest_output(e) > 0.0f)
        all.push_back(
            {static_cast<int>(l), e, static_cast<double>(records[l].largest_output(e)), 0.0});
  if (all.empty()) return all;
  std::stable_sort(all.begin(), all.end(), [](const super_expert& a, const super_expert& b) {
    return a.largest > b.largest;
  });
  const double median = all[all.size() / 2].largest;
  const auto above =
      static_cast<std::size_t>((1.0 - criterion.percentile) * static_cast<double>(all.size()));
  std::vector<super_expert> found;
  std::vector<int> in_layer(records.size(), 0);
  for (std::size_t i = 0; i <= above && i < all.size(); ++i) {
    super_expert& each = all[i];
    each.of_median = each.largest / median;
    if (each.largest <= criterion.share_of_largest * all[0].largest ||
        each.of_median <= criterion.times_the_median)
      break;
    if (++in_layer[static_cast<std::size_t>(each.layer)] <= max_super_experts)
      found.push_back(each);
  }
  return found;
}

ADAPTIVE_K_NAMESPACE_END

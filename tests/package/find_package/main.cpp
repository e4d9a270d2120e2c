// A user of the installed package: routes logits as OLMoE would, with fewer experts.
#include <cstdio>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/calibration/preset.hpp"

int main() {
  const adaptive_k::router router = adaptive_k::from_preset("olmoe-1b-7b");

  const int experts = router.model().num_experts;
  const int tokens = 100;
  std::vector<float> logits(static_cast<std::size_t>(tokens * experts));
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i * i % 1009) / 1009 * static_cast<float>(i / 640);

  adaptive_k::routing_metrics metrics;
  const adaptive_k::logits_view<float> view = {logits.data(), tokens, experts};
  const auto batch = router.route(0, view, &metrics);
  if (!batch.result.ok()) std::printf("%s\n", batch.result.message());
  std::printf("saved %.1f%% of the expert calls\n", 100 * metrics.expert_savings());
  return batch.result.ok() ? 0 : 1;
}

// A user who keeps adaptive_k in a subfolder of the own project.
#include <cstdio>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"

int main() {
  adaptive_k::gating gating;
  gating.num_experts = 8;
  gating.top_k = 2;
  const adaptive_k::router router(gating, adaptive_k::k_policy::entropy({1, 2}, {1.2f}));

  std::vector<float> logits(64 * 8);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i * i % 61) / 61 * static_cast<float>(i / 64);

  adaptive_k::routing_metrics metrics;
  const adaptive_k::logits_view<float> view = {logits.data(), 64, 8};
  const auto batch = router.route(0, view, &metrics);
  if (!batch.result.ok()) {
    std::printf("%s\n", batch.result.message());
    return 1;
  }
  std::printf("saved %.1f%% of the expert calls\n", 100 * metrics.expert_savings());
  return 0;
}

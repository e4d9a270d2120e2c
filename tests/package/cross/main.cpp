// Routes in C, then in C++, with the headers that a program on any machine may want.
#if defined(_WIN32)
#include <windows.h>  // with its macros
#endif

#include <cstdio>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/observability/json_log.hpp"
#include "adaptive_k/observability/prometheus.hpp"
#include "adaptive_k/observability/trace_view.hpp"

extern "C" int c_main(void);

int main() {
  if (c_main() != 0) return 1;
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
  adaptive_k::prometheus_recorder recorder;
  recorder.record(recorder.find({"cross", 0, "entropy"}), metrics, 1e-6);
  std::printf("saved %.1f%% of the expert calls\n", 100 * metrics.expert_savings());
  return batch.result.ok() ? 0 : 1;
}

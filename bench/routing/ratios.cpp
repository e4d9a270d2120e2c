#include "ratios.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "inputs.hpp"

namespace routing_bench {

void ratio_reporter::ReportRuns(const std::vector<Run>& runs) {
  shown_->ReportRuns(runs);
  for (const Run& run : runs) {
    if (run.run_type != Run::RT_Iteration || run.iterations == 0) continue;
    const auto calls = static_cast<double>(run.iterations);
    const seconds times = {run.cpu_accumulated_time / calls, run.real_accumulated_time / calls};
    seconds& best = best_.emplace(run.run_name.function_name, times).first->second;
    best.processor = std::min(best.processor, times.processor);
    best.real = std::min(best.real, times.real);
  }
}

void ratio_reporter::print_ratios() const {
  static constexpr const char* baselines[] = {"scalar/f32",
                                              "ggml_chain/f32",
                                              "adaptive_k_scalar/f32",
                                              "adaptive_k_avx2/f32",
                                              "adaptive_k_2_threads/f32",
                                              "adaptive_k/bf16",
                                              "adaptive_k_tables/f32",
                                              "adaptive_k_head/f32"};
  const bool for_people = dynamic_cast<benchmark::ConsoleReporter*>(shown_) != nullptr;
  std::FILE* const to = for_people ? stdout : stderr;
  fmt::print(to,
             "\nns per token of route/adaptive_k/f32, and the time of the others over its time\n");
  fmt::print(to, "{:>6} {:>8} {:>8}", "T", "E/K", "ns");
  for (const char* baseline : baselines) fmt::print(to, "  {:>24}", baseline);
  fmt::print(to, "\n");
  for (const std::int64_t tokens : token_counts)
    for (const shape s : shapes) {
      const std::string at = fmt::format("/T:{}/E:{}/K:{}", tokens, s.num_experts, s.top_k);
      const auto own = best_.find("route/adaptive_k/f32" + at);
      if (own == best_.end()) continue;
      fmt::print(to, "{:>6} {:>8} {:>8.1f}", tokens, fmt::format("{}/{}", s.num_experts, s.top_k),
                 own->second.processor * 1e9 / static_cast<double>(tokens));
      for (const char* baseline : baselines) {
        const auto found = best_.find(std::string("route/") + baseline + at);
        if (found == best_.end())
          fmt::print(to, "  {:>24}", "-");
        else
          fmt::print(to, "  {:>24.2f}",
                     std::string(baseline).find("threads") == std::string::npos
                         ? found->second.processor / own->second.processor
                         : found->second.real / own->second.real);
      }
      fmt::print(to, "\n");
    }
}

}  // namespace routing_bench

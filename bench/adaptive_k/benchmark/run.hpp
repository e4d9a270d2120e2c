// `adaptive-k benchmark` without its command line: what tests can call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bench/adaptive_k/benchmark/result.hpp"
#include "bench/adaptive_k/input/inputs.hpp"
#include "bench/adaptive_k/measure/live_view.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

struct benchmark_options : input_options {
  std::string layers;
  std::string trace;
  std::string json;
  std::uint64_t seed = 1;      ///< of the random control
  std::optional<int> prompts;  ///< to go on from greedily; none: 64 where there is room for them
  live_options live;
};

/// Both show their calls on `live`, and register the preset that they read with `roles`.
benchmark_result run_benchmark(const benchmark_options& options, live_view& live,
                               file_roles& roles);
trace_result run_trace_benchmark(const benchmark_options& options, live_view& live,
                                 file_roles& roles);

}  // namespace bench

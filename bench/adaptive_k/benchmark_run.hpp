// `adaptive-k benchmark` without its command line: what tests can call.
#pragma once

#include <cstdint>
#include <string>

#include "bench/adaptive_k/benchmark_result.hpp"
#include "bench/adaptive_k/live_view.hpp"
#include "bench/adaptive_k/model.hpp"
#include "bench/adaptive_k/output.hpp"

namespace bench {

struct benchmark_options {
  std::string model;
  std::string dataset;
  std::string policy;
  std::string layers;
  std::string trace;
  std::string json;
  int context = 0;           ///< 0: the model's own
  std::int64_t windows = 0;  ///< 0: all
  std::uint64_t seed = 1;    ///< of the random control
  live_options live;
};

/// Both show their calls on `live`, and tell `roles` of the preset that they read.
benchmark_result run_benchmark(const benchmark_options& options, live_view& live,
                               file_roles& roles);
trace_result run_trace_benchmark(const benchmark_options& options, live_view& live,
                                 file_roles& roles);

model_facts facts_of(const loaded_model& model);

/// The data set asked for, else the model's own heldout_test.txt. Throws failure.
dataset dataset_for(const std::string& asked, const std::string& model_folder, int vocab_size);

/// `asked` or, for 0, the model's own context. Throws failure unless in 2..max_positions.
int window_length(int asked, int max_positions);

}  // namespace bench

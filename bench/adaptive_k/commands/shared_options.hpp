// Options that several commands have.
#pragma once

#include <CLI/CLI.hpp>
#include <vector>

#include "bench/adaptive_k/calibrate/setup.hpp"
#include "bench/adaptive_k/input/inputs.hpp"

namespace bench {

CLI::Option* add_model_option(CLI::App& command, input_options& options);
CLI::Option* add_dataset_option(CLI::App& command, input_options& options);
CLI::Option* add_policy_option(CLI::App& command, input_options& options);
CLI::Option* add_context_option(CLI::App& command, input_options& options);
CLI::Option* add_windows_option(CLI::App& command, input_options& options);

/// Those of a model and its texts; returns them, for what goes without a model to exclude.
std::vector<CLI::Option*> add_calibration_options(CLI::App& command, calibration_options& options);

}  // namespace bench

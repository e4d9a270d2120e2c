// The subcommands of adaptive-k: each adds itself to the command line and runs when it is chosen.
#pragma once

namespace CLI {
class App;
}

namespace bench {

void add_benchmark_command(CLI::App& app);
void add_speed_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_presets_command(CLI::App& app);
void add_record_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_frontier_command(CLI::App& app);
void add_matrix_command(CLI::App& app);
void add_combine_command(CLI::App& app);
void add_budget_command(CLI::App& app);
void add_scale_command(CLI::App& app);

}  // namespace bench

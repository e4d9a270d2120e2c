// adaptive-k: what does adaptive K save on a model, what does it cost, against which controls.
#include <CLI/CLI.hpp>
#include <adaptive_k/calibration/format/printable.hpp>
#include <adaptive_k/config.hpp>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <sstream>
#include <string>
#include <system_error>

#include "bench/adaptive_k/commands/commands.hpp"
#include "bench/adaptive_k/commands/option_checks.hpp"
#include "bench/adaptive_k/output/files.hpp"
#include "bench/adaptive_k/version.hpp"

namespace {

constexpr int status_of_a_mistake = 2;

void say(const char* message) {
  std::fprintf(stderr, "adaptive-k: %s\n",
               adaptive_k::detail::printable_message(message, 1100).c_str());
}

int run(int argc, char** argv) {
  CLI::App app("Mixture-of-Experts routing with fewer experts per token: what it saves and costs.",
               "adaptive-k");
  app.set_version_flag("--version", bench::version());
  app.require_subcommand(0, 1);  // none is refused below: then an unknown one is named first
  app.set_help_all_flag("--help-all", "Help of every command");
  bench::add_benchmark_command(app);
  bench::add_speed_command(app);
  bench::add_inspect_command(app);
  bench::add_presets_command(app);
  bench::add_record_command(app);
  bench::add_calibrate_command(app);
  bench::add_frontier_command(app);
  bench::add_matrix_command(app);
  bench::add_combine_command(app);
  bench::add_budget_command(app);
  bench::add_scale_command(app);
  bench::check_values(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version also come this way, with status 0.
    std::ostringstream refusal;
    if (app.exit(error, std::cout, refusal) == 0) return 0;
    std::istringstream lines(refusal.str());
    std::string line;
    if (std::getline(lines, line)) say(line.c_str());
    while (std::getline(lines, line))  // where help is
      std::fprintf(stderr, "%s\n", adaptive_k::detail::printable_message(line, 1000).c_str());
    return status_of_a_mistake;
  }
  if (app.get_subcommands().empty()) {
    say("A command is required.");
    std::fputs("Run with --help for more information.\n", stderr);
    return status_of_a_mistake;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  bench::claim_standard_streams();
  int status = status_of_a_mistake;
  try {
    status = run(argc, argv);
  } catch (const std::bad_alloc&) {
    say("not enough memory");
  } catch (const std::system_error& error) {
    // Printing throws this, in words that do not say where to; that is said below.
    if (std::ferror(stdout) == 0) say(error.what());
  } catch (const std::exception& error) {
    say(error.what());
  }
  if (const std::string problem = bench::stdout_problem(); !problem.empty()) {
    say(("stdout: cannot be written: " + problem).c_str());
    status = status_of_a_mistake;
  }
  return status;
}

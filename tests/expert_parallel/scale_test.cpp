// `adaptive-k scale` against the MPI layer that it models, fed with the same routing: bytes and
// rows are equal, and times are within a tenth where an expert's rows take a set time.
#include <gtest/gtest.h>

#include <bench/adaptive_k/input/trace.hpp>
#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "expert_parallel/mpirun.hpp"

namespace {

using nlohmann::json;

/// Router logits of which some experts are liked better: 4 layers of 16 windows of 40 tokens.
std::string write_skewed_trace(const scratch_folder& folder) {
  bench::trace_info info;
  info.model = "reference-32x8";
  info.num_layers = 4;  // as the preset's policy has
  info.gating.num_experts = 32;
  info.gating.top_k = 8;
  info.num_tokens = 16 * 40;
  info.window = 40;
  info.dataset = "made up";
  info.dataset_sha256 = "none";
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  bench::trace_values values;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    std::vector<float> liked(32), logits;
    for (float& each : liked) each = normal(random);
    for (std::int64_t t = 0; t < info.num_tokens; ++t)
      for (const float each : liked) logits.push_back(each + 1.5f * normal(random));
    values.logits.push_back(logits);
  }
  values.biases.resize(values.logits.size());
  const std::string file = (folder.path() / "trace.safetensors").string();
  bench::write_trace(file, info, values);
  return file;
}

/// What trace_run prints, by name.
struct measured_run {
  double steps = 0, rows = 0, bytes = 0, run = 0, measured_s = 0, modelled_s = 0;
};
std::vector<measured_run> run_trace(int ranks, const std::vector<std::string>& arguments) {
  const outcome job = run_job(ADAPTIVE_K_TRACE_RUN, {{ranks, arguments}});
  EXPECT_EQ(job.status, 0) << job.err;
  std::vector<measured_run> runs;
  std::istringstream lines(job.out);
  for (std::string line; std::getline(lines, line);) {
    measured_run made;
    std::istringstream words(line);
    std::string name;
    for (double* value :
         {&made.steps, &made.rows, &made.bytes, &made.run, &made.measured_s, &made.modelled_s})
      words >> name >> *value;
    EXPECT_FALSE(words.fail()) << job.out;
    runs.push_back(made);
  }
  return runs;
}

json scale(const std::vector<std::string>& arguments) {
  const outcome result = run_command(ADAPTIVE_K_BENCH_PROGRAM, arguments);
  EXPECT_EQ(result.status, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

TEST(Scale, BytesAndRowsAreThoseOfTheMpiRun) {
  const scratch_folder folder;
  const std::string trace = write_skewed_trace(folder);
  const json report =
      scale({"scale", "--trace", trace, "--ranks", "3,8", "--tokens", "10", "--value-bytes", "4",
             "--hidden", "12", "--redundant", "5", "--budget", "12", "--json", "-"});
  int compared = 0;
  for (const json& row : report["rows"]) {
    const std::string routing = row["routing"];
    if (routing.rfind("fixed", 0) == 0) continue;
    const bool has_budget = contains(routing, "budget");
    const bool by_load = row["placement"] != "contiguous";
    const int ranks = row["ranks"];
    const std::vector<measured_run> runs =
        run_trace(ranks, {trace, "10", routing == "full K" ? "full" : "calibrated",
                          by_load ? "5" : "0", has_budget ? "12" : "0", "0", "1e30"});
    ASSERT_EQ(runs.size(), 1u);
    const measured_run& made = runs.front();
    const double shares = made.steps * ranks;
    EXPECT_EQ(row["steps"].get<double>(), made.steps);
    EXPECT_NEAR(row["rows_of_rank"].get<double>(), made.rows / shares, 1e-9 * made.rows) << row;
    EXPECT_NEAR(row["bytes_of_rank"].get<double>(), made.bytes / shares, 1e-9 * made.bytes) << row;
    EXPECT_NEAR(row["mean_k"].get<double>(), made.run / (shares * 10 * 4), 1e-9) << row;
    EXPECT_LE(row["once_bytes_of_rank"].get<double>(), row["bytes_of_rank"].get<double>() * 3.0);
    ++compared;
  }
  EXPECT_EQ(compared, 2 * 3 * 2);
}

TEST(Scale, StepTimesAreWithinATenthOfTheMpiRuns) {
  const scratch_folder folder;
  const std::string trace = write_skewed_trace(folder);
  for (const int ranks : {2, 4, 8}) {
    // Pairs of an exchange's latency, in rows' times, and of the bytes that travel in one.
    const std::vector<measured_run> runs =
        run_trace(ranks, {trace, std::to_string(160 / ranks), "calibrated", "0", "0", "0", "1e30",
                          "8", "1e30", "3", "50", "20", "200"});
    ASSERT_EQ(runs.size(), 4u);
    for (const measured_run& made : runs) {
      EXPECT_GT(made.modelled_s, 100.0);
      EXPECT_NEAR(made.measured_s / made.modelled_s, 1.0, 0.1) << ranks << " ranks";
    }
    EXPECT_GT(runs[2].modelled_s, 1.3 * runs[0].modelled_s);  // the exchange counts
  }
}

}  // namespace

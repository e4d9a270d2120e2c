// `adaptive-k scale`: a call worked out by hand, the rows of a report, and what is refused.
#include <gtest/gtest.h>

#include <bench/adaptive_k/input/trace.hpp>
#include <bench/adaptive_k/scale/run.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace {

using bench::call_figures;
using expert_parallel::dispatch_form;
using expert_parallel::placement;
using nlohmann::json;

TEST(Scale, ACallWorkedOutByHand) {
  // Two ranks of two experts, K0 = 2. Rank 0: tokens {0, 1}, {2, 3}, {2}; rank 1: {3}, {0, 3}.
  const placement where = placement::contiguous(4, 2);
  const std::vector<std::int32_t> ids0 = {0, 1, 2, 3, 2, -1}, counts0 = {2, 2, 1};
  const std::vector<std::int32_t> ids1 = {3, -1, 0, 3}, counts1 = {1, 2};
  const std::vector<expert_parallel::routed_tokens> tokens = {{ids0.data(), counts0.data(), 3},
                                                              {ids1.data(), counts1.data(), 2}};
  bench::call_sizes sizes;
  sizes.expert = {100, 10, 3, 2.0};  // 6000 operations a row, 6000 bytes an expert
  sizes.top_k = 2;
  sizes.bytes_per_value = 2;  // 200 bytes a row
  bench::rank_machine machine;
  machine.link_bytes_per_s = 1000.0;
  machine.latency_s = 0.5;
  machine.flops = 6000.0;               // a second a row
  machine.memory_bytes_per_s = 4000.0;  // 1.5 s an expert
  const call_figures pairs =
      bench::figures_of_call(where, tokens, sizes, machine, dispatch_form::each_pair);
  ASSERT_EQ(pairs.ranks.size(), 2u);
  const bench::rank_figures &a = pairs.ranks[0], &b = pairs.ranks[1];
  EXPECT_EQ(a.pairs.rows, 3u);
  EXPECT_EQ(a.pairs.bytes_out, 3u * 200u + 2u * 4u);
  EXPECT_EQ(a.pairs.bytes_back, 600u);
  EXPECT_EQ(a.once.rows, 2u);
  EXPECT_EQ(a.once.bytes_out, 2u * (200u + 24u) + 8u);
  EXPECT_EQ(b.pairs.rows, 1u);
  EXPECT_EQ(b.arriving_rows, 3u);
  EXPECT_EQ(b.arriving_once, 2u);
  EXPECT_EQ(a.own_rows, 2u);
  EXPECT_EQ(a.arriving_rows, 1u);
  EXPECT_EQ(b.own_rows, 2u);
  EXPECT_EQ(a.slots, 2);
  EXPECT_EQ(b.slots, 2);
  EXPECT_EQ(a.own_slots, 2);
  EXPECT_EQ(a.arriving_slots, 1);
  EXPECT_EQ(b.own_slots, 1);
  EXPECT_EQ(b.arriving_slots, 2);
  // Out: counts and rows; rank 0 sends 608, rank 1 receives 608: 2 * 0.5 + 0.608 for both. Experts:
  // rank 0 three rows of two experts, max(3, 3); rank 1 five rows, max(5, 3). Back: rank 1 sends
  // 600.
  EXPECT_NEAR(pairs.seconds, 1.608 + 5.0 + 1.1, 1e-12);
  // Rank 0: arriving max(1, 1.5) = 1.5 at 1.608; own max(2, 3) = 3, of which 1.392 are left.
  // Rank 1: arriving max(3, 3) = 3; own max(2, 1.5) = 2, of which 0.392 are left. The answers
  // travel from 4.608 on, until 5.708; rank 1 is done at 1.608 + 3 + 0.392 = 5.0.
  EXPECT_NEAR(pairs.overlapped_seconds, 5.708, 1e-12);
  // Sent once a rank: 2 rows of 224 bytes and 8 go out, 2 of 200 come back.
  const call_figures once =
      bench::figures_of_call(where, tokens, sizes, machine, dispatch_form::once_a_rank);
  EXPECT_NEAR(once.seconds, 1.456 + 5.0 + 0.9, 1e-12);
}

TEST(Scale, StepsAreDealtFromTheSecondHalf) {
  bench::trace_info info;
  info.num_tokens = 5 * 3;
  info.window = 3;
  // Windows 2, 3 and 4 of five: the first position of each, then the second, ...
  EXPECT_EQ(bench::dealt_rows(info, bench::token_order::decode),
            (std::vector<std::int64_t>{6, 9, 12, 7, 10, 13, 8, 11, 14}));
  EXPECT_EQ(bench::dealt_rows(info, bench::token_order::prefill),
            (std::vector<std::int64_t>{6, 7, 8, 9, 10, 11, 12, 13, 14}));
}

class ScaleCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    bench::trace_info info;
    info.model = "nobody";
    info.num_layers = 2;
    info.gating.num_experts = 8;
    info.gating.top_k = 4;
    info.num_tokens = 8 * 16;
    info.window = 16;
    info.dataset = "made up";
    info.dataset_sha256 = "none";
    bench::trace_values values;
    std::uint32_t state = 1;
    for (int layer = 0; layer < 2; ++layer) {
      std::vector<float> logits(static_cast<std::size_t>(info.num_tokens * 8));
      for (std::size_t i = 0; i < logits.size(); ++i) {
        state = state * 1664525u + 1013904223u;
        logits[i] = static_cast<float>(state >> 8) / 4194304.0f + (i % 8 == 3 ? 2.0f : 0.0f);
      }
      values.logits.push_back(logits);
    }
    values.biases.resize(2);
    trace_ = (folder_.path() / "trace.safetensors").string();
    bench::write_trace(trace_, info, values);
  }

  outcome run(const std::vector<std::string>& more) {
    return run_program(command_line{"scale", "--trace", trace_} + more);
  }

  scratch_folder folder_;
  std::string trace_;
};

TEST_F(ScaleCommand, RowsOfAReport) {
  const outcome result =
      run({"--hidden", "64", "--intermediate", "32", "--ranks", "1,2,16", "--tokens", "4",
           "--policy", "top_p:0.7", "--redundant", "4", "--budget", "3", "--json", "-"});
  // Four copies on one rank cannot be.
  EXPECT_EQ(result.status, 2);
  EXPECT_TRUE(contains(result.err, "--redundant: redundant is 4, expected at most 0"))
      << result.err;

  const outcome made =
      run({"--hidden", "64", "--intermediate", "32", "--ranks", "1,2,16", "--tokens", "4",
           "--policy", "top_p:0.7", "--budget", "3", "--json", "-"});
  ASSERT_EQ(made.status, 0) << made.err;
  const json report = json::parse(made.out, nullptr, false);
  EXPECT_EQ(report["format"], "adaptive_k.scale");
  ASSERT_EQ(report["rows"].size(), 3u * 4u);
  for (std::size_t i = 0; i < 12; i += 4) {
    const json &full = report["rows"][i], &policy = report["rows"][i + 1],
               &fixed = report["rows"][i + 2], &budget = report["rows"][i + 3];
    EXPECT_EQ(full["routing"], "full K");
    EXPECT_EQ(full["mean_k"], 4.0);
    EXPECT_EQ(policy["routing"], "top_p:0.7");
    EXPECT_LT(policy["mean_k"].get<double>(), 4.0);
    EXPECT_NEAR(fixed["mean_k"].get<double>(), policy["mean_k"].get<double>(), 0.5 + 1e-9);
    EXPECT_LT(budget["mean_k"].get<double>(), policy["mean_k"].get<double>());
    const int ranks = full["ranks"];
    EXPECT_EQ(full["steps"].get<int>(), 64 / (4 * ranks));
    for (const json& row : {full, policy, fixed, budget}) {
      EXPECT_GE(row["worst_load"].get<double>(), row["largest_load"].get<double>() - 1e-12);
      EXPECT_GE(row["largest_load"].get<double>(), 1.0 - 1e-12);
      EXPECT_LE(row["largest_load"].get<double>(), ranks + 1e-12);
      EXPECT_LE(row["once_rows_of_rank"].get<double>(), row["rows_of_rank"].get<double>());
      EXPECT_GT(row["modelled_seconds"].get<double>(), 0.0);
      if (ranks == 1) {
        EXPECT_EQ(row["bytes_of_rank"], 0.0);
        EXPECT_EQ(row["largest_load"], 1.0);
      } else {
        EXPECT_GT(row["bytes_of_rank"].get<double>(), 0.0);
      }
    }
    // With as many slots as ranks or more, a rank's four tokens are told of each other slot.
    const double slots = full["slots"];
    EXPECT_EQ(slots, ranks == 16 ? 16 : 8);
    EXPECT_NEAR(full["bytes_of_rank"].get<double>(),
                full["rows_of_rank"].get<double>() * 2 * 64 * 2 +
                    2 * 4 * (slots - slots / ranks),  // in each of two layers
                1e-6);
  }
  const outcome table = run({"--hidden", "64", "--intermediate", "32", "--ranks", "2", "--tokens",
                             "4", "--order", "prefill", "--dispatch", "once_a_rank"});
  ASSERT_EQ(table.status, 0) << table.err;
  for (const char* words : {"Times are modelled, on assumed machines", "dispatch once_a_rank",
                            "prefill", "top_p:0.9 (hand-set, not calibrated)", "contiguous"})
    EXPECT_TRUE(contains(table.out, words)) << table.out;
}

TEST_F(ScaleCommand, Refusals) {
  const auto refuses = [&](const std::vector<std::string>& arguments, const std::string& words) {
    const outcome result = run(arguments);
    EXPECT_EQ(result.status, 2) << words;
    EXPECT_TRUE(contains(result.err, words)) << result.err;
  };
  refuses({}, "--hidden and --intermediate: are needed, as no preset is called 'nobody'");
  const std::vector<std::string> sized = {"--hidden", "64", "--intermediate", "32"};
  refuses(sized, "--tokens: 64 on 8 ranks, expected at most 64 in all");
  refuses(sized + command_line{"--ranks", "3", "--tokens", "22"},
          "--tokens: 22 on 3 ranks, expected at most 64 in all");
  refuses(sized + command_line{"--tokens", "1", "--budget", "9"},
          "--budget: 9, expected 1..8, the model's experts");
  refuses(sized + command_line{"--ranks", "0"}, "'0', expected a whole number of 1..1024");
  refuses(sized + command_line{"--order", "random"}, "random");
  refuses(sized + command_line{"--compute", "0"}, "--compute");
  EXPECT_EQ(run_program({"scale"}).status, 2);
}

}  // namespace

// The example over MPI: the same bits from any number of ranks, its bytes, and its faults.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/calibration/preset.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <expert_parallel/experts.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "expert_parallel/mpirun.hpp"

namespace {

outcome run_ranks(int ranks, const std::vector<std::string>& arguments) {
  return run_job(ADAPTIVE_K_RANKS_PROGRAM, {{ranks, arguments}});
}

/// What must not depend on the number of ranks: everything before the line with that number.
std::string result_of(const outcome& job) {
  EXPECT_EQ(job.status, 0) << job.err;
  return job.out.substr(0, job.out.find(" ranks\n"));
}
std::string without_number(std::string result) {
  return result.substr(0, result.rfind('\n'));
}

/// A row of the table of bytes: rows, bytes out, bytes back.
std::vector<std::uint64_t> bytes_row(const outcome& job, const std::string& name) {
  const std::size_t at = job.out.find(name);
  if (at == std::string::npos) return {};
  std::istringstream numbers(job.out.substr(at + name.size()));
  std::vector<std::uint64_t> row(3);
  numbers >> row[0] >> row[1] >> row[2];
  EXPECT_TRUE(numbers.good()) << job.out;
  return row;
}

/// The same model by plain loops in one process: no permutation, no exchange, no combine call.
std::string expected_hash(const std::string& policy, int tokens, int steps) {
  namespace ep = expert_parallel;
  const adaptive_k::preset preset = adaptive_k::load_preset("reference-32x8");
  const adaptive_k::router router = preset.make_router(policy);
  const ep::model_shape shape = {32, 64, 48, preset.num_moe_layers};
  const ep::placement one = ep::placement::contiguous(32, 1);
  std::uint64_t hash = ep::hash_bytes("", 0);
  for (int step = 0; step < steps; ++step) {
    std::uint64_t sum = 0;
    for (std::int64_t token = 0; token < tokens; ++token) {
      std::vector<float> x(64), logits(32), y(64), of_expert(64), weights(8);
      ep::make_token(step, token, 64, x.data());
      for (int layer = 0; layer < shape.num_layers; ++layer) {
        const ep::made_up_layer experts(shape, layer, one, 0);
        experts.router_logits(x.data(), 1, logits.data());
        std::vector<std::int32_t> ids(8);
        std::int32_t count = 0;
        EXPECT_TRUE(router
                        .route(layer, adaptive_k::logits_view<float>{logits.data(), 1, 32, 0},
                               adaptive_k::routing_output<>{ids.data(), weights.data(), &count})
                        .ok());
        y.assign(64, 0.0f);
        for (int j = 0; j < count; ++j) {
          experts.run(ids[static_cast<std::size_t>(j)], x.data(), 1, of_expert.data());
          for (std::size_t i = 0; i < 64; ++i)
            y[i] = std::fma(weights[static_cast<std::size_t>(j)], of_expert[i], y[i]);
        }
        for (std::size_t i = 0; i < 64; ++i) x[i] = 0.5f * (x[i] + y[i]);
      }
      sum += ep::hash_bytes(x.data(), 64 * sizeof(float), ep::hash_bytes(&token, sizeof token));
    }
    hash = ep::hash_bytes(&sum, sizeof sum, hash);
  }
  char text[32];
  std::snprintf(text, sizeof text, "outputs %016llx\n", static_cast<unsigned long long>(hash));
  return text;
}

TEST(ExpertParallel, EveryNumberOfRanksGivesTheBitsOfPlainLoops) {
  const std::string expected = expected_hash("", 40, 2);
  std::string first;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    const std::string result =
        without_number(result_of(run_ranks(ranks, {"--tokens", "40", "--steps", "2"})));
    EXPECT_TRUE(contains(result, expected)) << ranks << " ranks: " << result << expected;
    if (ranks == 1) first = result;
    EXPECT_EQ(result, first);  // mean K, savings and distinct experts of all ranks together, too
  }
}

TEST(ExpertParallel, SharedMemoryCarriesTheSameBits) {
  const outcome job = run_program(
      {"--oversubscribe", "-n", "3", ADAPTIVE_K_RANKS_PROGRAM, "--tokens", "40", "--steps", "2"},
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 120");
  EXPECT_TRUE(contains(result_of(job), expected_hash("", 40, 2))) << job.out;
}

TEST(ExpertParallel, RanksWithoutTokens) {
  const std::string one = without_number(result_of(run_ranks(1, {"--tokens", "3"})));
  EXPECT_EQ(without_number(result_of(run_ranks(8, {"--tokens", "3"}))), one);
  EXPECT_TRUE(contains(one, expected_hash("", 3, 4))) << one;
  EXPECT_EQ(without_number(result_of(run_ranks(4, {"--tokens", "0"}))),
            without_number(result_of(run_ranks(1, {"--tokens", "0"}))));
}

TEST(ExpertParallel, ReplicatedExpertsGiveTheSameBits) {
  const std::vector<std::string> small = {"--tokens", "60", "--steps", "3"};
  const std::string one = without_number(result_of(run_ranks(1, small)));
  for (const int ranks : {2, 3, 8}) {
    const outcome job = run_ranks(ranks, small + command_line{"--redundant", "8"});
    EXPECT_EQ(without_number(result_of(job)), one) << ranks;
  }
  const outcome refused = run_ranks(2, small + command_line{"--redundant", "40"});
  EXPECT_NE(refused.status, 0);
  EXPECT_TRUE(contains(refused.err, "--redundant: redundant is 40, expected at most 32"))
      << refused.err;
}

TEST(ExpertParallel, TheControllerMovesAllRanksAlike) {
  const std::vector<std::string> held = {"--tokens", "60", "--steps", "8", "--hold", "0.5"};
  const std::string one = without_number(result_of(run_ranks(1, held)));
  EXPECT_FALSE(contains(one, "scale 1\n")) << one;
  EXPECT_FALSE(contains(one + "\n", "scale 1\n")) << one;
  for (const int ranks : {3, 4})
    EXPECT_EQ(without_number(result_of(run_ranks(ranks, held))), one) << ranks;
}

TEST(ExpertParallel, RankZerosPolicyHoldsForAll) {
  const std::vector<std::string> small = {"--tokens", "60", "--steps", "1", "--policy"};
  const outcome job = run_job(ADAPTIVE_K_RANKS_PROGRAM, {{1, small + command_line{"fixed:3"}},
                                                         {2, small + command_line{"fixed:5"}}});
  EXPECT_TRUE(contains(result_of(job), "mean K 3.0000")) << job.out;
  EXPECT_TRUE(contains(job.out, expected_hash("fixed:3", 60, 1))) << job.out;
}

TEST(ExpertParallel, BytesAreWhatWasHandedToMpi) {
  const std::string full_pairs = "full K, a row for each (token, expert)";
  const std::string pairs = "this K, a row for each (token, expert)";
  const std::string full_once = "full K, a row for each (token, rank)";
  const std::string once = "this K, a row for each (token, rank)";
  const std::string measured = "measured: handed to MPI_Ialltoallv";
  for (const int ranks : {2, 3, 8}) {
    const outcome job = run_ranks(ranks, {"--tokens", "90", "--steps", "2"});
    const outcome full = run_ranks(ranks, {"--tokens", "90", "--steps", "2", "--policy", "full"});
    ASSERT_EQ(job.status, 0) << job.err;
    ASSERT_EQ(full.status, 0) << full.err;
    EXPECT_EQ(bytes_row(job, measured), bytes_row(job, pairs)) << ranks;
    EXPECT_EQ(bytes_row(full, measured), bytes_row(full, full_pairs)) << ranks;
    EXPECT_EQ(bytes_row(full, pairs), bytes_row(full, full_pairs)) << ranks;
    EXPECT_EQ(bytes_row(full, once), bytes_row(full, full_once)) << ranks;
    // A token goes once to each other rank at most, and no more often than it has experts there.
    const std::uint64_t calls = 90 * 2 * 4;
    EXPECT_LE(bytes_row(full, full_once)[0], calls * static_cast<std::uint64_t>(ranks - 1));
    EXPECT_LE(bytes_row(job, once)[0], bytes_row(job, pairs)[0]);
    EXPECT_LT(bytes_row(job, pairs)[0], bytes_row(job, full_pairs)[0]);
    // 256 bytes a row, and 4 for each slot of another rank, in each of 8 calls of each rank.
    const auto row = bytes_row(job, measured);
    EXPECT_EQ(row[2], row[0] * 256);
    EXPECT_EQ(row[1], row[0] * 256 + 8 * 4 * 32 * static_cast<std::uint64_t>(ranks - 1));
  }
  const outcome alone = run_ranks(1, {"--tokens", "20", "--steps", "1"});
  EXPECT_EQ(bytes_row(alone, measured), (std::vector<std::uint64_t>{0, 0, 0})) << alone.err;
}

/// Runs a job that must end by itself, soon, and not well.
outcome run_to_its_end(const std::vector<std::string>& fault) {
  const auto start = std::chrono::steady_clock::now();
  const outcome job = run_ranks(4, command_line{"--tokens", "60"} + fault);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_NE(job.status, 0);
  EXPECT_NE(job.status, 124) << "it hung";
  EXPECT_LT(took.count(), 60.0);
  EXPECT_FALSE(contains(job.out, "outputs")) << job.out;
  return job;
}

TEST(ExpertParallel, ARankThatDiesEndsTheJob) {
  const outcome killed = run_to_its_end({"--fault", "kill:2@1"});
  EXPECT_TRUE(contains(killed.err, "process rank 2")) << killed.err;
  EXPECT_TRUE(contains(killed.err, "signal 9")) << killed.err;
  const outcome left = run_to_its_end({"--fault", "exit:0@2"});
  EXPECT_TRUE(contains(left.err, "non-zero status")) << left.err;
}

TEST(ExpertParallel, ARankThatDoesNotAnswerEndsTheJob) {
  for (const char* fault : {"stop:1@1", "stop:0@2"}) {
    const outcome stopped = run_to_its_end({"--fault", fault, "--timeout", "4"});
    EXPECT_TRUE(contains(stopped.err, "waited 4 s for")) << stopped.err;
    EXPECT_TRUE(contains(stopped.err, "a rank does not answer, so the job ends")) << stopped.err;
  }
}

TEST(ExpertParallel, RanksThatDisagreeDoNotStart) {
  const scratch_folder folder;
  std::string text =
      content_of(std::string(ADAPTIVE_K_SOURCE_DIR) + "/calibrations/reference-32x8.json");
  text = std::regex_replace(text, std::regex("\"lambda\": [0-9.e-]+"), "\"lambda\": 0.5");
  const std::string other = folder.write("other.json", text).string();
  const outcome presets =
      run_job(ADAPTIVE_K_RANKS_PROGRAM, {{2, {}}, {1, {"--preset", other}}, {1, {}}});
  EXPECT_NE(presets.status, 0);
  EXPECT_NE(presets.status, 124) << "it hung";
  EXPECT_TRUE(contains(presets.err, "the ranks disagree on the preset: rank 2 has reference-32x8"))
      << presets.err;
  EXPECT_FALSE(contains(presets.err, "rank 3 has")) << presets.err;

  const outcome sizes = run_job(ADAPTIVE_K_RANKS_PROGRAM, {{1, {}}, {1, {"--tokens", "10"}}});
  EXPECT_NE(sizes.status, 0);
  EXPECT_TRUE(contains(sizes.err, "the ranks disagree on the options: rank 1 has 10 tokens"))
      << sizes.err;
}

TEST(ExpertParallel, MistakesAreNamed) {
  const auto refuses = [](const std::vector<std::string>& arguments, const std::string& words) {
    const outcome job = run_ranks(2, arguments);
    EXPECT_NE(job.status, 0) << words;
    EXPECT_NE(job.status, 124) << "it hung";
    EXPECT_TRUE(contains(job.err, words)) << job.err;
  };
  refuses({"--tokens", "many"}, "--tokens: 'many', expected a whole number of 0..");
  refuses({"--preset", "nobody"}, "preset 'nobody': unknown");
  refuses({"--policy", "fixed:9"}, "policy 'fixed:9': fixed k is 9, expected 1..top_k = 8");
}

}  // namespace

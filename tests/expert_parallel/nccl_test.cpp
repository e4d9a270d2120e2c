// The example's variant for GPUs beside the host's: the same hash. On the interpreter of PTX,
// NCCL's calls go over MPI; on a GPU, where there is one, to NCCL.
#include <gtest/gtest.h>

#include <string>

#include "expert_parallel/mpirun.hpp"

namespace {

std::string line_of_outputs(const outcome& job) {
  EXPECT_EQ(job.status, 0) << job.err;
  const std::size_t at = job.out.find("outputs ");
  return at == std::string::npos ? "" : job.out.substr(at, job.out.find('\n', at) - at);
}

TEST(ExpertParallelNccl, GivesTheHostsBitsOnTheInterpreter) {
  for (const char* policy : {"calibrated", "fixed:3"}) {
    const std::vector<std::string> small = {"--tokens", "10", "--steps", "2", "--policy", policy};
    const std::string host = line_of_outputs(run_job(ADAPTIVE_K_RANKS_PROGRAM, {{1, small}}));
    EXPECT_FALSE(host.empty());
    for (const int ranks : {1, 2, 3, 8})
      EXPECT_EQ(line_of_outputs(run_job(ADAPTIVE_K_NCCL_ON_INTERPRETER, {{ranks, small}})), host)
          << ranks << " ranks";
  }
  const std::vector<std::string> few = {"--tokens", "2", "--steps", "1"};  // ranks without any
  EXPECT_EQ(line_of_outputs(run_job(ADAPTIVE_K_NCCL_ON_INTERPRETER, {{4, few}})),
            line_of_outputs(run_job(ADAPTIVE_K_RANKS_PROGRAM, {{1, few}})));
}

TEST(ExpertParallelNccl, GivesTheHostsBitsOnAGpu) {
  const std::vector<std::string> small = {"--tokens", "40", "--steps", "2"};
  const outcome device = run_job(ADAPTIVE_K_NCCL_PROGRAM, {{1, small}});
  ASSERT_EQ(device.status, 0) << device.err;
  if (contains(device.out, "no CUDA device"))
    GTEST_SKIP() << "no GPU: with NCCL it was compiled and linked alone";
  EXPECT_EQ(line_of_outputs(device),
            line_of_outputs(run_job(ADAPTIVE_K_RANKS_PROGRAM, {{1, small}})));
}

TEST(ExpertParallelNccl, HelpAndMistakes) {
  const outcome help = run_command(ADAPTIVE_K_NCCL_PROGRAM, {"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_TRUE(contains(help.out, "--preset")) << help.out;
  const outcome mistake = run_job(ADAPTIVE_K_NCCL_PROGRAM, {{2, {"--tokens", "many"}}});
  EXPECT_NE(mistake.status, 0);
  EXPECT_TRUE(contains(mistake.err, "--tokens: 'many', expected")) << mistake.err;
}

}  // namespace

// Runs the recorded routings of a trace through the example's MPI layer, on all ranks of a job, and
// compares what was handed to MPI, what each rank ran and how long it took with what
// `adaptive-k scale` computes for the same steps.
//   trace_run TRACE TOKENS_OF_RANK POLICY REDUNDANT BUDGET ROW_SECONDS
#include <mpi.h>

#include <algorithm>
#include <bench/adaptive_k/input/policy_choice.hpp>
#include <bench/adaptive_k/input/trace.hpp>
#include <bench/adaptive_k/scale/run.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <expert_parallel/moe_layer.hpp>
#include <string>
#include <thread>
#include <vector>

namespace {

std::uint64_t bytes_sent = 0, bytes_received = 0;  // to and from other ranks

std::uint64_t bytes_of(const int* counts, MPI_Datatype type) {
  int rank = 0, ranks = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Type_size(type, &size);
  std::uint64_t bytes = 0;
  for (int other = 0; other < ranks; ++other)
    if (other != rank)
      bytes += static_cast<std::uint64_t>(counts[other]) * static_cast<std::uint64_t>(size);
  return bytes;
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// MPI's profiling interface: the layer's calls come by here.
extern "C" int MPI_Ialltoallv(const void* from, const int* leaving, const int* from_first,
                              MPI_Datatype from_type, void* to, const int* arriving,
                              const int* to_first, MPI_Datatype to_type, MPI_Comm communicator,
                              MPI_Request* request) {
  bytes_sent += bytes_of(leaving, from_type);
  bytes_received += bytes_of(arriving, to_type);
  return PMPI_Ialltoallv(from, leaving, from_first, from_type, to, arriving, to_first, to_type,
                         communicator, request);
}

namespace {

struct arguments {
  std::string trace, policy;
  std::int64_t tokens_of_rank = 0;
  int redundant = 0, budget = 0;
  double row_s = 0.0;
};

void run(const expert_parallel::ranks& job, const arguments& given) {
  constexpr int hidden = 12;
  const bench::trace_reader trace(given.trace);
  const bench::trace_info& info = trace.info();
  const int top_k = info.gating.top_k, experts = info.gating.num_experts;
  std::string note;
  const auto preset = bench::find_preset({info.model}, info.gating, note);
  const auto choice = bench::choose_policy(given.policy, info.gating, info.num_layers, preset);
  const adaptive_k::router router =
      adaptive_k::make_router(info.gating, choice.policy, info.num_layers);
  bench::call_sizes sizes;
  sizes.expert = {hidden, 1, 3, 0.0};
  sizes.top_k = top_k;
  sizes.bytes_per_value = sizeof(float);
  bench::rank_machine machine;  // nothing takes time but an expert's rows
  machine.latency_s = 0.0;
  machine.link_bytes_per_s = 1e30;
  machine.flops = sizes.expert.flops_per_expert_call() / (given.row_s > 0.0 ? given.row_s : 1.0);

  const auto rows = bench::dealt_rows(info, bench::token_order::decode);
  const auto steps = static_cast<std::int64_t>(rows.size()) / (job.size() * given.tokens_of_rank);
  std::vector<std::uint64_t> sums(4);  // rows and bytes sent by pairs, rows run, steps
  std::vector<float> x(static_cast<std::size_t>(given.tokens_of_rank * hidden)), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) + 1.0f;
  double measured_s = 0.0, modelled_s = 0.0;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    const bench::routed_layer routed = bench::route_dealt(trace, layer, router, rows);
    auto where = expert_parallel::placement::contiguous(experts, job.size());
    if (given.redundant > 0) {
      const adaptive_k::status placed =
          expert_parallel::placement::by_load(routed.loads, job.size(), given.redundant, &where);
      if (!placed.ok()) job.fail(placed.message());
    }
    expert_parallel::moe_layer exchange(job, where, top_k, hidden);
    bench::routed_layer held;
    for (std::int64_t step = 0; step < steps; ++step) {
      const auto tokens = bench::tokens_of_step(routed, top_k, experts, job.size(),
                                                given.tokens_of_rank, step, given.budget, &held);
      const bench::call_figures expected = bench::figures_of_call(
          where, tokens, sizes, machine, expert_parallel::dispatch_form::each_pair);
      const bench::rank_figures& own = expected.ranks[static_cast<std::size_t>(job.rank())];
      const std::int64_t first = (step * job.size() + job.rank()) * given.tokens_of_rank * top_k;
      std::vector<std::int32_t> ids(
          tokens[static_cast<std::size_t>(job.rank())].topk_ids,
          tokens[static_cast<std::size_t>(job.rank())].topk_ids + given.tokens_of_rank * top_k);
      std::vector<std::int32_t> counts(
          tokens[static_cast<std::size_t>(job.rank())].topk_counts,
          tokens[static_cast<std::size_t>(job.rank())].topk_counts + given.tokens_of_rank);
      std::vector<float> weights(routed.weights.begin() + first,
                                 routed.weights.begin() + first + given.tokens_of_rank * top_k);
      expert_parallel::call_report done;
      double fastest_s = 1e30;  // what else the machine does only adds to it
      for (int repeat = 0; repeat < (given.row_s > 0.0 ? 5 : 1); ++repeat) {
        MPI_Request together = MPI_REQUEST_NULL;
        job.check(MPI_Ibarrier(job.communicator(), &together), "start together");
        job.wait(&together, "the start of a step");
        bytes_sent = bytes_received = 0;
        const double start = now_s();
        done = exchange.forward(
            {ids.data(), weights.data(), counts.data()}, x.data(), given.tokens_of_rank,
            [&](int, const float* inputs, std::int64_t count, float* outputs) {
              std::memcpy(outputs, inputs,
                          static_cast<std::size_t>(count * hidden) * sizeof(float));
              if (given.row_s > 0.0)
                std::this_thread::sleep_for(
                    std::chrono::duration<double>(given.row_s * static_cast<double>(count)));
            },
            y.data());
        job.check(MPI_Ibarrier(job.communicator(), &together), "end together");
        job.wait(&together, "the end of a step");
        fastest_s = std::min(fastest_s, now_s() - start);
      }
      measured_s += fastest_s;
      modelled_s += expected.overlapped_seconds;

      constexpr std::uint64_t row_bytes = hidden * sizeof(float);
      const std::uint64_t sent = own.pairs.bytes_out + own.arriving_rows * row_bytes;
      const std::uint64_t received = own.pairs.bytes_back + own.arriving_rows * row_bytes +
                                     4 * static_cast<std::uint64_t>(where.slots_of(job.rank())) *
                                         static_cast<std::uint64_t>(job.size() - 1);
      if (bytes_sent != sent || bytes_received != received ||
          done.sent.bytes() != own.pairs.bytes() ||
          done.rows_run != own.own_rows + own.arriving_rows)
        job.fail("layer " + std::to_string(layer) + ", step " + std::to_string(step) + ": sent " +
                 std::to_string(bytes_sent) + " and received " + std::to_string(bytes_received) +
                 " bytes, expected " + std::to_string(sent) + " and " + std::to_string(received));
      // Experts that copy: each output is its token times the sum of its weights.
      for (std::int64_t t = 0; t < given.tokens_of_rank; ++t) {
        float sum = 0.0f;
        for (std::int64_t j = t * top_k; j < t * top_k + counts[static_cast<std::size_t>(t)]; ++j)
          sum += weights[static_cast<std::size_t>(j)];
        const auto i = static_cast<std::size_t>(t * hidden);
        if (!(y[i] >= x[i] * sum * 0.9999f && y[i] <= x[i] * sum * 1.0001f))
          job.fail("token " + std::to_string(t) + " came back as another");
      }
      sums[0] += done.sent.rows;
      sums[1] += done.sent.bytes();
      sums[2] += done.rows_run;
    }
  }
  job.reduce(&sums, MPI_SUM, "the sums");
  if (job.rank() == 0)
    std::printf("steps %lld rows %llu bytes %llu run %llu measured_s %.4f modelled_s %.4f\n",
                static_cast<long long>(steps), static_cast<unsigned long long>(sums[0]),
                static_cast<unsigned long long>(sums[1]), static_cast<unsigned long long>(sums[2]),
                measured_s, modelled_s);
}

}  // namespace

int main(int argc, char** argv) {
  expert_parallel::ranks job(60.0);
  if (argc != 7) job.fail("usage: trace_run TRACE TOKENS_OF_RANK POLICY REDUNDANT BUDGET ROW_S");
  try {
    run(job, {argv[1], argv[3], std::atoll(argv[2]), std::atoi(argv[4]), std::atoi(argv[5]),
              std::atof(argv[6])});
  } catch (const std::exception& error) {
    job.fail(error.what());
  }
  std::fflush(stdout);
  job.finish();
  return 0;
}

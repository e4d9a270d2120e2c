// Runs the recorded routings of a trace through the example's MPI layer, on all ranks of a job, and
// compares what was handed to MPI, what each rank ran and how long it took with what
// `adaptive-k scale` computes for the same steps.
//   trace_run TRACE TOKENS_OF_RANK POLICY REDUNDANT BUDGET [LATENCY LINK]...
// Time is logical, as ranks that share cores have no other: a rank's clock goes on by one for each
// row that its experts run, and an exchange arrives LATENCY, and its bytes / LINK, after the last
// rank has started it. What the layer does meanwhile is the layer's own doing.
#include <mpi.h>

#include <algorithm>
#include <bench/adaptive_k/input/policy_choice.hpp>
#include <bench/adaptive_k/input/trace.hpp>
#include <bench/adaptive_k/scale/run.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <expert_parallel/moe_layer.hpp>
#include <string>
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

double clock_s = 0.0;  // of this rank
double latency_s = 0.0, link_bytes_per_s = 1e30;

/// The exchange under way: the layer has one at a time.
struct {
  MPI_Request request = MPI_REQUEST_NULL;
  bool is_known = false;
  double took_s = 0.0, arrival_s = 0.0, asked_s = -1.0;
} under_way;

/// Waits for the bytes, and learns when they arrive by the clock.
void learn_arrival() {
  PMPI_Wait(&under_way.request, MPI_STATUS_IGNORE);
  double last_start = clock_s;
  PMPI_Allreduce(MPI_IN_PLACE, &last_start, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  under_way.arrival_s = last_start + under_way.took_s;
  under_way.is_known = true;
}

}  // namespace

// MPI's profiling interface: the layer's calls come by here.
extern "C" int MPI_Ialltoallv(const void* from, const int* leaving, const int* from_first,
                              MPI_Datatype from_type, void* to, const int* arriving,
                              const int* to_first, MPI_Datatype to_type, MPI_Comm communicator,
                              MPI_Request* request) {
  const std::uint64_t out = bytes_of(leaving, from_type), in = bytes_of(arriving, to_type);
  bytes_sent += out;
  bytes_received += in;
  const int result = PMPI_Ialltoallv(from, leaving, from_first, from_type, to, arriving, to_first,
                                     to_type, communicator, request);
  under_way = {};
  under_way.request = *request;
  under_way.took_s = latency_s + static_cast<double>(std::max(out, in)) / link_bytes_per_s;
  return result;
}

// Complete once the clock has come to the arrival; or, where it is asked for again although nothing
// was run since, by waiting until then.
extern "C" int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  if (*request == MPI_REQUEST_NULL || *request != under_way.request)
    return PMPI_Test(request, done, status);
  if (!under_way.is_known) {
    learn_arrival();
    under_way.request = *request;  // still what the layer asks for
  }
  *done = under_way.arrival_s <= clock_s || under_way.asked_s == clock_s ? 1 : 0;
  under_way.asked_s = clock_s;
  if (*done != 0) {
    clock_s = std::max(clock_s, under_way.arrival_s);
    *request = under_way.request = MPI_REQUEST_NULL;
  }
  return MPI_SUCCESS;
}

namespace {

struct arguments {
  std::string trace, policy;
  std::int64_t tokens_of_rank = 0;
  int redundant = 0, budget = 0;
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
  bench::rank_machine machine;
  machine.latency_s = latency_s;
  machine.link_bytes_per_s = link_bytes_per_s;
  machine.flops = sizes.expert.flops_per_expert_call();  // a row a second

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
      bytes_sent = bytes_received = 0;
      clock_s = 0.0;
      const expert_parallel::call_report done = exchange.forward(
          {ids.data(), weights.data(), counts.data()}, x.data(), given.tokens_of_rank,
          [&](int, const float* inputs, std::int64_t count, float* outputs) {
            std::memcpy(outputs, inputs, static_cast<std::size_t>(count * hidden) * sizeof(float));
            clock_s += static_cast<double>(count);
          },
          y.data());
      double last_s = clock_s;
      PMPI_Allreduce(MPI_IN_PLACE, &last_s, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      measured_s += last_s;
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
  if (argc < 8 || argc % 2 != 0)
    job.fail("usage: trace_run TRACE TOKENS_OF_RANK POLICY REDUNDANT BUDGET [LATENCY LINK]...");
  try {
    for (int i = 6; i < argc; i += 2) {
      latency_s = std::atof(argv[i]);
      link_bytes_per_s = std::atof(argv[i + 1]);
      run(job, {argv[1], argv[3], std::atoll(argv[2]), std::atoi(argv[4]), std::atoi(argv[5])});
    }
  } catch (const std::exception& error) {
    job.fail(error.what());
  }
  std::fflush(stdout);
  job.finish();
  return 0;
}

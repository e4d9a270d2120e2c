#include "agreement.hpp"

#include <cstddef>
#include <cstring>

namespace expert_parallel {
namespace {

constexpr std::size_t value_bytes = 200;

/// An MPI_User_function. Plain data of one build: the bytes travel as they are.
void add_metrics(void* in, void* inout, int* count, MPI_Datatype*) {
  for (int i = 0; i < *count; ++i) {
    const std::size_t at = static_cast<std::size_t>(i) * sizeof(adaptive_k::routing_metrics);
    adaptive_k::routing_metrics a, b;
    std::memcpy(&a, static_cast<const char*>(in) + at, sizeof a);
    std::memcpy(&b, static_cast<const char*>(inout) + at, sizeof b);
    b += a;
    std::memcpy(static_cast<char*>(inout) + at, &b, sizeof b);
  }
}

}  // namespace

void require_agreement(const ranks& job, const std::string& what, const std::string& value) {
  std::string own = value.substr(0, value_bytes);
  own.resize(value_bytes, '\0');
  const std::string all = job.gather(own, what.c_str());
  const auto value_of = [&](int rank) {
    const std::string padded =
        all.substr(static_cast<std::size_t>(rank) * value_bytes, value_bytes);
    return padded.substr(0, padded.find('\0'));
  };
  std::string others;
  for (int rank = 1; rank < job.size(); ++rank)
    if (value_of(rank) != value_of(0))
      others +=
          (others.empty() ? "rank " : ", rank ") + std::to_string(rank) + " has " + value_of(rank);
  if (others.empty()) return;
  // Rank 0 speaks; the others wait for it to end the job.
  if (job.rank() == 0)
    job.fail("the ranks disagree on the " + what + ": " + others + ", expected rank 0's " +
             value_of(0));
  MPI_Request never = MPI_REQUEST_NULL;
  job.check(MPI_Ibarrier(job.communicator(), &never), "wait");
  job.wait(&never, "rank 0, which ends the job as the ranks disagree");
  job.fail("the ranks disagree on the " + what);
}

void add_shared_calls(const ranks& job, std::vector<adaptive_k::routing_metrics> parts,
                      adaptive_k::routing_metrics* total) {
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Op add = MPI_OP_NULL;
  job.check(MPI_Type_contiguous(static_cast<int>(sizeof parts[0]), MPI_BYTE, &type), "make a type");
  job.check(MPI_Type_commit(&type), "make a type");
  job.check(MPI_Op_create(add_metrics, 1, &add), "make an operation");
  MPI_Request reduced = MPI_REQUEST_NULL;
  job.check(MPI_Iallreduce(MPI_IN_PLACE, parts.data(), static_cast<int>(parts.size()), type, add,
                           job.communicator(), &reduced),
            "add up metrics");
  job.wait(&reduced, "the metrics of all ranks");
  MPI_Op_free(&add);
  MPI_Type_free(&type);
  for (const adaptive_k::routing_metrics& call : parts)
    adaptive_k::add_parts_of_call(&call, 1, total);
}

}  // namespace expert_parallel

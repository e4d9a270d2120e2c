// The processes of an MPI job, none of which waits for ever.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace expert_parallel {

/// Every exchange is started, and waited for with a time-out: a rank that does not answer ends the
/// job, on all ranks, with a message that says who waited for what. One thread of a process.
class ranks {
 public:
  /// Starts MPI. Where it does not start within `timeout_s`, or a minute, the process is
  /// ended by SIGALRM.
  explicit ranks(double timeout_s);
  /// Ends MPI when all ranks have come here; nothing else does.
  void finish();

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  MPI_Comm communicator() const noexcept { return MPI_COMM_WORLD; }
  double timeout_s() const noexcept { return timeout_s_; }

  /// Prints `message` and ends the job.
  [[noreturn]] void fail(const std::string& message) const;
  /// Fails where an MPI call did not return MPI_SUCCESS.
  void check(int result, const char* what) const;

  /// Whether what was started is complete; `request` is then MPI_REQUEST_NULL.
  bool is_done(MPI_Request* request, const char* what) const;
  /// Until it is, or fails after the time-out. `what` says in the message what was waited for.
  void wait(MPI_Request* request, const char* what) const;

  /// The same bytes on all ranks: rank 0's.
  void broadcast(void* bytes, std::size_t size, const char* what) const;
  std::string broadcast(std::string text, const char* what) const;
  /// [size() * each] on every rank, in order of rank.
  std::string gather(const std::string& each, const char* what) const;
  /// Each of `values` added up over all ranks, or their largest by MPI_MAX, on every rank.
  void reduce(std::vector<std::uint64_t>* values, MPI_Op operation, const char* what) const;

 private:
  double timeout_s_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace expert_parallel

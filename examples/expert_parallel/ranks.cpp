#include "ranks.hpp"

#include <unistd.h>

#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace expert_parallel {
namespace {

using seconds = std::chrono::duration<double>;

constexpr double least_start_s = 60.0;  // of a job that starts well on a busy machine

/// Ends the process, and by that the job, where the call inside, which has no time-out of its own,
/// does not return in time.
class alarm_clock {
 public:
  explicit alarm_clock(double timeout_s) {
    alarm(static_cast<unsigned>(std::fmin(std::ceil(timeout_s), 1e6)));
  }
  ~alarm_clock() { alarm(0); }
  alarm_clock(const alarm_clock&) = delete;
  alarm_clock& operator=(const alarm_clock&) = delete;
};

}  // namespace

ranks::ranks(double timeout_s) : timeout_s_(timeout_s) {
  const alarm_clock limit(std::fmax(timeout_s, least_start_s));
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "start MPI");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "ask for the rank");
  check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "ask for the number of ranks");
}

void ranks::finish() {
  MPI_Request all = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(communicator(), &all), "end");
  wait(&all, "the end of the other ranks");
  const alarm_clock limit(timeout_s_);
  check(MPI_Finalize(), "end MPI");
}

void ranks::fail(const std::string& message) const {
  std::fprintf(stderr, "expert_parallel: rank %d of %d: %s\n", rank_, size_, message.c_str());
  std::fflush(stderr);
  const alarm_clock limit(10.0);
  MPI_Abort(communicator(), 2);
  std::_Exit(2);
}

void ranks::check(int result, const char* what) const {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  fail(std::string("cannot ") + what + ": " + text);
}

bool ranks::is_done(MPI_Request* request, const char* what) const {
  int done = 0;
  if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS)
    fail(std::string("lost a rank while it waited for ") + what);
  return done != 0;
}

void ranks::wait(MPI_Request* request, const char* what) const {
  const auto start = std::chrono::steady_clock::now();
  for (int tries = 0; !is_done(request, what); ++tries) {
    // MPI makes progress in the call above alone; ranks that share a core must let one another run.
    if (tries < 100) continue;
    std::this_thread::sleep_for(std::chrono::microseconds(tries < 1000 ? 20 : 200));
    if (seconds(std::chrono::steady_clock::now() - start).count() > timeout_s_) {
      char limit[32];
      std::snprintf(limit, sizeof limit, "%g", timeout_s_);
      fail("waited " + std::string(limit) + " s for " + what +
           ": a rank does not answer, so the job ends");
    }
  }
}

void ranks::broadcast(void* bytes, std::size_t size, const char* what) const {
  if (size > INT_MAX) fail(std::string(what) + " is too long to be sent");
  MPI_Request sent = MPI_REQUEST_NULL;
  check(MPI_Ibcast(bytes, static_cast<int>(size), MPI_BYTE, 0, communicator(), &sent), "broadcast");
  wait(&sent, what);
}

std::string ranks::broadcast(std::string text, const char* what) const {
  std::uint64_t size = text.size();
  broadcast(&size, sizeof size, what);
  text.resize(static_cast<std::size_t>(size));
  broadcast(text.data(), text.size(), what);
  return text;
}

std::string ranks::gather(const std::string& each, const char* what) const {
  std::string all(each.size() * static_cast<std::size_t>(size_), '\0');
  MPI_Request gathered = MPI_REQUEST_NULL;
  check(MPI_Iallgather(each.data(), static_cast<int>(each.size()), MPI_BYTE, all.data(),
                       static_cast<int>(each.size()), MPI_BYTE, communicator(), &gathered),
        "gather");
  wait(&gathered, what);
  return all;
}

void ranks::reduce(std::vector<std::uint64_t>* values, MPI_Op operation, const char* what) const {
  MPI_Request reduced = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(MPI_IN_PLACE, values->data(), static_cast<int>(values->size()), MPI_UINT64_T,
                       operation, communicator(), &reduced),
        "reduce");
  wait(&reduced, what);
}

}  // namespace expert_parallel

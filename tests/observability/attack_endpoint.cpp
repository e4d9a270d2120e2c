// Attacks an endpoint of 127.0.0.1 with everything in endpoint_attacks.hpp, one after another, and
// says whether it still answers, and with the process' id how much memory it took.
//   attack_endpoint port [pid]
#include <cstdio>
#include <cstdlib>

#include "endpoint_attacks.hpp"
#include "process_memory.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: attack_endpoint port [pid]\n");
    return 2;
  }
  const int port = std::atoi(argv[1]);
  const pid_t process = argc > 2 ? std::atoi(argv[2]) : -1;
  endpoint_attacks::allow_many_connections();
  int lost = 0;
  std::printf("%-55s %8s %10s %10s\n", "attack", "seconds", "peak MB", "answers");
  for (const endpoint_attacks::attack& one : endpoint_attacks::all()) {
    if (process > 0) forget_peak(process);
    const auto start = std::chrono::steady_clock::now();
    one.run(port);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const bool answers = http_client::code(http_client::get(port)) == 200;
    lost += answers ? 0 : 1;
    std::printf("%-55s %8.1f %10.1f %10s\n", one.name, took.count(),
                process > 0 ? status_megabytes(process, "VmHWM") : 0.0, answers ? "yes" : "NO");
    std::fflush(stdout);
  }
  return lost == 0 ? 0 : 1;
}

#include "options.hpp"

#include <charconv>
#include <cstring>

namespace expert_parallel {

const char* const usage =
    "usage: mpirun -n RANKS expert_parallel [options]\n"
    "  --preset NAME|FILE     of which gating and policies are (default: reference-32x8); every "
    "rank\n"
    "                         reads its own, and all must be the same\n"
    "  --policy POLICY        as adaptive-k takes it; rank 0's holds for all (default: the "
    "preset's)\n"
    "  --tokens N             of a step, all ranks together (default: 256)\n"
    "  --steps N              (default: 4)\n"
    "  --hidden N, --intermediate N  sizes of the made-up experts (default: 64, 48)\n"
    "  --redundant N          copies of the experts with most tokens, beside the first (default: "
    "0)\n"
    "  --hold SAVING          share of expert calls that a controller saves (default: none)\n"
    "  --timeout SECONDS      longest wait for another rank (default: 60)\n"
    "  --fault KIND:RANK@STEP what happens to a rank: kill, stop or exit (default: none)\n";

namespace {

template <class Number>
bool reads(const std::string& text, Number least, Number most, Number* value) {
  const auto read = std::from_chars(text.data(), text.data() + text.size(), *value);
  return read.ec == std::errc() && read.ptr == text.data() + text.size() && *value >= least &&
         *value <= most;
}

bool reads_fault(const std::string& text, planned_fault* fault) {
  const std::size_t colon = text.find(':'), sign = text.find('@');
  if (colon == std::string::npos || sign == std::string::npos || sign < colon) return false;
  const std::string kind = text.substr(0, colon);
  using kinds = planned_fault::kind;
  fault->what = kind == "kill"   ? kinds::kill
                : kind == "stop" ? kinds::stop
                : kind == "exit" ? kinds::exit
                                 : kinds::none;
  return fault->what != kinds::none &&
         reads(text.substr(colon + 1, sign - colon - 1), 0, 1 << 20, &fault->rank) &&
         reads(text.substr(sign + 1), 0, 1 << 20, &fault->step);
}

/// What `value` should have been, or "".
std::string set_option(const std::string& option, const std::string& value, options* read) {
  const auto whole = [&](int least, int most, int* target) {
    return reads(value, least, most, target)
               ? std::string()
               : "a whole number of " + std::to_string(least) + ".." + std::to_string(most);
  };
  if (option == "--preset") return read->preset = value, std::string();
  if (option == "--policy") return read->policy = value, std::string();
  if (option == "--tokens") return whole(0, 1 << 24, &read->tokens);
  if (option == "--steps") return whole(1, 1 << 20, &read->steps);
  if (option == "--hidden") return whole(1, 1 << 16, &read->hidden);
  if (option == "--intermediate") return whole(1, 1 << 16, &read->intermediate);
  if (option == "--redundant") return whole(0, 1023, &read->redundant);
  if (option == "--hold")
    return reads(value, 0.001, 0.999, &read->hold) ? "" : "a share of 0.001..0.999";
  if (option == "--timeout")
    return reads(value, 0.1, 1e6, &read->timeout_s) ? "" : "0.1..1000000 seconds";
  return reads_fault(value, &read->fault) ? "" : "kill, stop or exit, as kill:RANK@STEP";
}

}  // namespace

std::string read_options(int argc, char** argv, options* read) {
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--help" || option == "-h") {
      read->help = true;
      return "";
    }
    bool known = false;
    for (const char* name : {"--preset", "--policy", "--tokens", "--steps", "--hidden",
                             "--intermediate", "--redundant", "--hold", "--timeout", "--fault"})
      known = known || option == name;
    if (!known) return "'" + option + "', expected an option; --help lists them";
    if (i + 1 == argc) return option + ": no value";
    const std::string expected = set_option(option, argv[i + 1], read);
    if (!expected.empty()) return option + ": '" + argv[i + 1] + "', expected " + expected;
  }
  return "";
}

}  // namespace expert_parallel

#include "bench/adaptive_k/calibrate/run_journal.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <adaptive_k/calibration/format/json_parse.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {
namespace {

constexpr const char* format_name = "adaptive_k.journal";
constexpr std::size_t longest_line = 64'000'000;

volatile std::sig_atomic_t interrupted = 0;

extern "C" void note_interrupt(int) {
  interrupted = 1;
}

nlohmann::json to_json(const adaptive_k::routing_outcome& outcome) {
  nlohmann::json windows = nlohmann::json::array();
  for (const adaptive_k::window_outcome& w : outcome.windows)
    windows.push_back({w.kl, w.nll, w.agreement});
  return {{"windows", windows}, {"layer_mean_k", outcome.layer_mean_k}};
}

adaptive_k::routing_outcome outcome_of(const nlohmann::json& json) {
  adaptive_k::routing_outcome outcome;
  for (const nlohmann::json& w : json.at("windows"))
    outcome.windows.push_back(
        {w.at(0).get<double>(), w.at(1).get<double>(), w.at(2).get<double>()});
  outcome.layer_mean_k = json.at("layer_mean_k").get<std::vector<double>>();
  return outcome;
}

/// A line's object; empty where it is not a JSON object, as when it was cut off.
nlohmann::json object_in(const std::string& line) {
  try {
    nlohmann::json value = adaptive_k::detail::parse_json_text(line, "");
    if (value.is_object()) return value;
  } catch (const adaptive_k::file_error&) {  // refused here means not kept
  }
  return nlohmann::json::object();
}

/// The names whose values differ, or that only one has.
std::string differences(const work_identity& a, const work_identity& b) {
  std::string names;
  work_identity all = a;
  all.insert(b.begin(), b.end());
  for (const auto& [name, unused] : all) {
    const auto of_a = a.find(name), of_b = b.find(name);
    if (of_a == a.end() || of_b == b.end() || of_a->second != of_b->second)
      names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

}  // namespace

run_journal::run_journal(std::filesystem::path file, work_identity identity, int expected_runs)
    : file_(std::move(file)),
      identity_(std::move(identity)),
      expected_runs_(expected_runs),
      shown_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  identity_["format"] = format_name;
  if (is_special(file_))
    throw failure(fmt::format("--journal: {}: is no file, expected one", file_.string()));
  check_writable("--journal", file_.string(), true);
  read();
  // The parent process may have asked for Ctrl-C to be ignored, as nohup does for hang-ups.
  interrupted = 0;
  sigaction(SIGINT, nullptr, &interrupt_before_);
  if (interrupt_before_.sa_handler == SIG_IGN) return;
  struct sigaction noted {};
  noted.sa_handler = note_interrupt;
  sigemptyset(&noted.sa_mask);
  noted.sa_flags = SA_RESTART;
  sigaction(SIGINT, &noted, nullptr);
}

run_journal::~run_journal() {
  sigaction(SIGINT, &interrupt_before_, nullptr);
  if (shown_) std::fputs("\r\033[K", stderr);
}

void run_journal::read() {
  std::ifstream old(file_, std::ios::binary);
  std::string line;
  const auto next = [&] {
    line.clear();
    for (char c = 0; old.get(c) && c != '\n';) {
      if (line.size() == longest_line)
        throw failure(fmt::format("--journal: {}: is no journal of adaptive-k", file_.string()));
      line += c;
    }
    return !line.empty() || old.good();
  };
  if (!old || !next()) return;  // nothing kept yet
  const nlohmann::json head = object_in(line);
  if (!head.contains("format") || head["format"] != format_name)
    throw failure(
        fmt::format("--journal: {}: is no journal of this version of adaptive-k; name another "
                    "file, or remove it",
                    file_.string()));
  work_identity theirs;
  for (const auto& [name, value] : head.items())
    if (value.is_string()) theirs[name] = value.get<std::string>();
  if (const std::string other = differences(identity_, theirs); !other.empty())
    throw failure(
        fmt::format("--journal: {}: is of other work: it differs in {}; remove it to start anew, "
                    "or name another",
                    file_.string(), other));
  has_header_ = true;
  while (next()) {
    const nlohmann::json entry = object_in(line);
    if (entry.empty()) continue;
    try {
      known_[entry.at("key").get<std::string>()] = outcome_of(entry);
    } catch (const nlohmann::json::exception&) {
      throw failure(
          fmt::format("--journal: {}: '{:.60}', expected a result of a run", file_.string(), line));
    }
  }
}

void run_journal::show(const std::string& what) {
  if (!shown_) return;
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  std::string left;
  if (runs_ > 0 && expected_runs_ > runs_)
    left = fmt::format(", about {:.0f} s left",
                       spent.count() / runs_ * static_cast<double>(expected_runs_ - runs_));
  std::fprintf(stderr, "\r\033[Krun %d of about %d: %s%s", runs_ + 1,
               std::max(expected_runs_, runs_ + 1), what.c_str(), left.c_str());
  std::fflush(stderr);
}

void run_journal::keep(const std::string& key, const adaptive_k::routing_outcome& outcome) {
  if (!problem_.empty()) return;
  nlohmann::json line = to_json(outcome);
  line["key"] = key;
  std::string text;
  if (!stream_.is_open()) {
    stream_.open(file_, std::ios::binary | std::ios::app);
    text =
        has_header_ ? "\n" : text_of(nlohmann::json(identity_)) + "\n";  // behind what was cut off
  }
  errno = 0;
  stream_ << text << text_of(line) << '\n' << std::flush;
  if (stream_) return;
  problem_ = fmt::format("--journal: {}: cannot be written: {}", file_.string(),
                         errno != 0 ? std::strerror(errno) : "unknown");
  std::fprintf(stderr, "%s; the work goes on, and would start anew after an interruption\n",
               problem_.c_str());
}

adaptive_k::run_memory run_journal::memory() {
  adaptive_k::run_memory memory;
  memory.recall = [this](const std::string& key, adaptive_k::routing_outcome& outcome) {
    const auto found = known_.find(key);
    if (found == known_.end()) return false;
    outcome = found->second;
    return true;
  };
  memory.remember = [this](const std::string& key, const adaptive_k::routing_outcome& outcome) {
    keep(key, outcome);
    known_[key] = outcome;
    ++runs_;
  };
  memory.step = [this](const std::string& what) {
    if (interrupted != 0)
      throw failure(fmt::format(
          "interrupted after {} runs; {}", runs_,
          !problem_.empty() ? std::string("they are lost, the journal could not be written")
          : known_.empty()  ? std::string("nothing is kept")
                            : fmt::format("the same command goes on from {}", file_.string())));
    show(what);
  };
  return memory;
}

void run_journal::finish() {
  stream_.close();
  std::error_code ignored;
  std::filesystem::remove(file_, ignored);
  if (!problem_.empty()) throw failure(problem_);
}

}  // namespace bench

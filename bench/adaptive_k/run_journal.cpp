#include "bench/adaptive_k/run_journal.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

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

}  // namespace

run_journal::run_journal(std::filesystem::path file, const std::string& identity, int expected_runs)
    : file_(std::move(file)),
      expected_runs_(expected_runs),
      shown_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  std::ifstream old(file_);
  std::string line;
  bool is_known = false;
  if (old && std::getline(old, line)) {
    const auto head = nlohmann::json::parse(line, nullptr, false);
    if (!head.is_object() || head.value("identity", std::string()) != identity)
      throw failure(fmt::format("{}: is of other work; remove it to start anew", file_.string()));
    is_known = true;
    while (std::getline(old, line)) {
      const auto entry = nlohmann::json::parse(line, nullptr, false);
      if (entry.is_object() && entry.contains("key") && entry.contains("layer_mean_k"))
        known_[entry["key"].get<std::string>()] = outcome_of(entry);
    }
  }
  old.close();
  stream_.open(file_, is_known ? std::ios::app : std::ios::trunc);
  if (!stream_) throw failure(fmt::format("{}: cannot be written", file_.string()));
  stream_ << (is_known ? "" : nlohmann::json{{"identity", identity}}.dump()) << '\n' << std::flush;
  interrupted = 0;
  std::signal(SIGINT, note_interrupt);
}

run_journal::~run_journal() {
  std::signal(SIGINT, SIG_DFL);
  if (shown_) std::fputs("\r\033[K", stderr);
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

adaptive_k::run_memory run_journal::memory() {
  adaptive_k::run_memory memory;
  memory.recall = [this](const std::string& key, adaptive_k::routing_outcome& outcome) {
    const auto found = known_.find(key);
    if (found == known_.end()) return false;
    outcome = found->second;
    return true;
  };
  memory.remember = [this](const std::string& key, const adaptive_k::routing_outcome& outcome) {
    nlohmann::json line = to_json(outcome);
    line["key"] = key;
    stream_ << line.dump() << '\n' << std::flush;
    known_[key] = outcome;
    ++runs_;
  };
  memory.step = [this](const std::string& what) {
    if (interrupted != 0)
      throw failure(fmt::format("interrupted after {} runs; the same command goes on from {}",
                                runs_, file_.string()));
    show(what);
  };
  return memory;
}

void run_journal::discard() {
  stream_.close();
  std::error_code ignored;
  std::filesystem::remove(file_, ignored);
}

}  // namespace bench

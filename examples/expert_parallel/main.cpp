// A model of made-up experts over MPI: the same outputs from any number of ranks, and the bytes.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/savings_controller.hpp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "agreement.hpp"
#include "experts.hpp"
#include "moe_layer.hpp"
#include "options.hpp"
#include "ranks.hpp"
#include "shared_policy.hpp"

namespace {

using namespace expert_parallel;  // NOLINT(google-build-using-namespace)

/// What would have travelled, by form and by K, beside what did.
struct byte_table {
  traffic full_pairs, pairs, full_once, once;
};

/// The layers of one rank, and the tokens that it owns.
class model_of_rank {
 public:
  model_of_rank(const ranks& job, const shared_policy& policy, const options& given)
      : job_(job),
        policy_(policy),
        shape_{policy.preset().model.num_experts, given.hidden, given.intermediate,
               policy.preset().num_moe_layers},
        top_k_(policy.preset().model.top_k),
        first_(std::int64_t{given.tokens} * job.rank() / job.size()),
        tokens_(std::int64_t{given.tokens} * (job.rank() + 1) / job.size() - first_),
        loads_(size(shape_.num_layers) * size(shape_.num_experts)) {
    for (int layer = 0; layer < shape_.num_layers; ++layer)
      place(layer, placement::contiguous(shape_.num_experts, job.size()));
    x_.resize(size(tokens_ * shape_.hidden_size) + 1);  // never null
    y_.resize(x_.size());
    logits_.resize(size(tokens_ * shape_.num_experts) + 1);
    ids_.resize(size(tokens_ * top_k_) + 1);
    weights_.resize(ids_.size());
    counts_.resize(size(tokens_) + 1);
  }

  /// Runs all layers on this rank's tokens; `parts` [layers] are its parts of the calls. Returns
  /// a sum over its tokens of the hash of each, with its number in the step.
  std::uint64_t run(std::int64_t step, std::vector<adaptive_k::routing_metrics>* parts) {
    for (std::int64_t t = 0; t < tokens_; ++t)
      make_token(step, first_ + t, shape_.hidden_size, row(x_, t));
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      const made_up_layer& experts = *experts_[size(layer)];
      experts.router_logits(x_.data(), tokens_, logits_.data());
      route(policy_.full(), layer, nullptr);
      bytes_.full_pairs += count(layer, dispatch_form::each_pair);
      bytes_.full_once += count(layer, dispatch_form::once_a_rank);
      route(policy_.router(), layer, &(*parts)[size(layer)]);
      bytes_.pairs += count(layer, dispatch_form::each_pair);
      bytes_.once += count(layer, dispatch_form::once_a_rank);
      report_ += layers_[size(layer)]->forward(
          {ids_.data(), weights_.data(), counts_.data()}, x_.data(), tokens_,
          [&](int slot, const float* inputs, std::int64_t rows, float* outputs) {
            experts.run(slot, inputs, rows, outputs);
          },
          y_.data());
      for (std::size_t i = 0; i < x_.size(); ++i) x_[i] = 0.5f * (x_[i] + y_[i]);
    }
    std::uint64_t sum = 0;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::int64_t number = first_ + t;
      sum += hash_bytes(row(x_, t), sizeof(float) * size(shape_.hidden_size),
                        hash_bytes(&number, sizeof number));
    }
    return sum;
  }

  /// Places every layer's experts anew, by the loads so far. All ranks call together.
  void rebalance(int redundant) {
    job_.reduce(&loads_, MPI_SUM, "the loads of experts");
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      const auto* loads = loads_.data() + size(layer) * size(shape_.num_experts);
      placement where = placement::contiguous(1, 1);
      const adaptive_k::status placed =
          placement::by_load({loads, loads + shape_.num_experts}, job_.size(), redundant, &where);
      if (!placed.ok()) job_.fail(std::string("--redundant: ") + placed.message());
      require_agreement(job_, "placement of experts", hex(where.fingerprint()));
      place(layer, where);
    }
  }

  const call_report& report() const noexcept { return report_; }
  const byte_table& bytes() const noexcept { return bytes_; }

 private:
  static std::size_t size(std::int64_t number) { return static_cast<std::size_t>(number); }
  float* row(std::vector<float>& of, std::int64_t t) const {
    return of.data() + t * shape_.hidden_size;
  }

  void place(int layer, const placement& where) {
    const auto l = size(layer);
    if (layers_.size() <= l) {
      layers_.resize(l + 1);
      experts_.resize(l + 1);
      where_.resize(l + 1, placement::contiguous(1, 1));
    }
    where_[l] = where;
    layers_[l] = std::make_unique<moe_layer>(job_, where, top_k_, shape_.hidden_size);
    experts_[l] = std::make_unique<made_up_layer>(shape_, layer, where, job_.rank());
  }

  void route(const adaptive_k::router& router, int layer, adaptive_k::routing_metrics* metrics) {
    adaptive_k::routing_output<> output{ids_.data(), weights_.data(), counts_.data()};
    if (metrics != nullptr)
      output.expert_counts = loads_.data() + size(layer) * size(shape_.num_experts);
    const adaptive_k::status routed = router.route(
        layer, adaptive_k::logits_view<float>{logits_.data(), tokens_, shape_.num_experts, 0},
        output, metrics, policy_.extras());
    if (!routed.ok()) job_.fail(routed.message());
  }

  traffic count(int layer, dispatch_form form) const {
    return count_traffic(where_[size(layer)], job_.rank(), form,
                         {ids_.data(), counts_.data(), tokens_},
                         {shape_.hidden_size, top_k_, sizeof(float)});
  }

  const ranks& job_;
  const shared_policy& policy_;
  model_shape shape_;
  int top_k_;
  std::int64_t first_;                              // of this rank's tokens, in the batch of all
  std::int64_t tokens_;                             // T of this rank
  std::vector<placement> where_;                    // [layers]
  std::vector<std::unique_ptr<moe_layer>> layers_;  // [layers]
  std::vector<std::unique_ptr<made_up_layer>> experts_;  // [layers]
  std::vector<std::uint64_t> loads_;                     // [layers, E], tokens of this rank
  std::vector<float> x_, y_, logits_, weights_;
  std::vector<std::int32_t> ids_, counts_;
  byte_table bytes_;
  call_report report_;
};

void have_fault(const ranks& job, const planned_fault& fault, int step) {
  if (fault.rank != job.rank() || fault.step != step) return;
  using kinds = planned_fault::kind;
  if (fault.what == kinds::kill) std::raise(SIGKILL);
  if (fault.what == kinds::stop) std::raise(SIGSTOP);
  if (fault.what == kinds::exit) std::_Exit(3);
}

void print_bytes(const ranks& job, const model_of_rank& model) {
  const byte_table& own = model.bytes();
  const traffic* const rows[] = {&own.full_pairs, &own.pairs, &own.full_once, &own.once,
                                 &model.report().sent};
  std::vector<std::uint64_t> sums;
  for (const traffic* row : rows)
    sums.insert(sums.end(), {row->rows, row->bytes_out, row->bytes_back});
  job.reduce(&sums, MPI_SUM, "the bytes of all ranks");
  if (job.rank() != 0) return;
  const char* const names[] = {
      "full K, a row for each (token, expert)", "this K, a row for each (token, expert)",
      "full K, a row for each (token, rank)  ", "this K, a row for each (token, rank)  ",
      "measured: handed to MPI_Ialltoallv    "};
  std::printf("%-40s %12s %14s %14s %8s\n", "rows and bytes to other ranks", "rows", "out", "back",
              "of full");
  const double full = static_cast<double>(sums[1] + sums[2]);
  for (std::size_t i = 0; i < 5; ++i) {
    const std::uint64_t* row = sums.data() + 3 * i;
    std::printf("%-40s %12llu %14llu %14llu", names[i], static_cast<unsigned long long>(row[0]),
                static_cast<unsigned long long>(row[1]), static_cast<unsigned long long>(row[2]));
    if (full > 0.0)
      std::printf(" %7.1f%%\n", 100.0 * static_cast<double>(row[1] + row[2]) / full);
    else
      std::printf(" %8s\n", "-");
  }
}

void print_work(const ranks& job, const call_report& report) {
  std::vector<std::uint64_t> most = {report.rows_run,
                                     static_cast<std::uint64_t>(report.wait_s * 1e6)};
  std::vector<std::uint64_t> sums = {report.rows_run, report.rows_overlapped};
  job.reduce(&most, MPI_MAX, "the work of all ranks");
  job.reduce(&sums, MPI_SUM, "the work of all ranks");
  if (job.rank() != 0 || sums[0] == 0) return;
  std::printf(
      "rows run: the largest rank has %.3f times the mean; %.1f%% of all while rows were "
      "under way; the longest wait of a rank was %.3f s\n",
      static_cast<double>(most[0]) * job.size() / static_cast<double>(sums[0]),
      100.0 * static_cast<double>(sums[1]) / static_cast<double>(sums[0]),
      static_cast<double>(most[1]) / 1e6);
}

void run(const ranks& job, const options& given) {
  require_agreement(job, "options",
                    std::to_string(given.tokens) + " tokens, " + std::to_string(given.steps) +
                        " steps, hidden " + std::to_string(given.hidden) + ", intermediate " +
                        std::to_string(given.intermediate) + ", redundant " +
                        std::to_string(given.redundant) + ", hold " + std::to_string(given.hold));
  shared_policy policy(job, given.preset, given.policy);
  const adaptive_k::preset& preset = policy.preset();
  model_of_rank model(job, policy, given);

  adaptive_k::savings_target target;
  if (given.hold > 0.0) target.expert_savings = given.hold;
  target.decision_tokens = static_cast<std::uint64_t>(given.tokens);
  adaptive_k::savings_controller controller(target);
  double scale = 1.0;
  adaptive_k::routing_metrics metrics;
  std::uint64_t hash = hash_bytes("", 0);
  for (int step = 0; step < given.steps; ++step) {
    have_fault(job, given.fault, step);
    std::vector<adaptive_k::routing_metrics> parts(static_cast<std::size_t>(preset.num_moe_layers));
    std::vector<std::uint64_t> outputs = {model.run(step, &parts)};
    job.reduce(&outputs, MPI_SUM, "the hash of all outputs");
    hash = hash_bytes(outputs.data(), sizeof outputs[0], hash);
    adaptive_k::routing_metrics of_step;
    add_shared_calls(job, std::move(parts), &of_step);
    metrics += of_step;
    if (step == 0 && given.redundant > 0) model.rebalance(given.redundant);
    if (given.hold > 0.0) {
      // Rank 0 decides for all, and all know where it stands: any of them could go on from there.
      if (job.rank() == 0) controller.observe(of_step);
      adaptive_k::controller_state decided = controller.state();
      job.broadcast(&decided, sizeof decided, "the controller's state");
      const adaptive_k::status resumed = controller.resume(decided);
      if (!resumed.ok()) job.fail(resumed.message());
      if (controller.scale() != scale) policy.rescale(scale = controller.scale());
    }
  }
  if (job.rank() == 0) {
    std::printf("%s, policy %s: %d experts of which %d, %d layers, %d steps of %d tokens\n",
                preset.name.c_str(), policy.name().c_str(), preset.model.num_experts,
                preset.model.top_k, preset.num_moe_layers, given.steps, given.tokens);
    std::printf("outputs %s\n", hex(hash).c_str());
    std::printf(
        "mean K %.4f, %.2f%% of expert calls saved, %.2f distinct experts a call, scale %g\n",
        metrics.mean_k(), 100.0 * metrics.expert_savings(), metrics.mean_distinct_experts(), scale);
    std::printf("%d ranks\n", job.size());
  }
  print_bytes(job, model);
  print_work(job, model.report());
}

}  // namespace

int main(int argc, char** argv) {
  options given;
  const std::string mistake = read_options(argc, argv, &given);
  if (given.help) {
    std::fputs(usage, stdout);
    return std::fflush(stdout) == 0 ? 0 : 2;
  }
  ranks job(given.timeout_s);
  if (!mistake.empty()) job.fail(mistake);
  try {
    run(job, given);
  } catch (const std::exception& error) {
    job.fail(error.what());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) job.fail("stdout: cannot be written");
  job.finish();
  return 0;
}

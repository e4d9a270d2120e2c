#include "moe_layer.hpp"

#include <adaptive_k/adaptive_k.hpp>
#include <algorithm>
#include <chrono>
#include <climits>
#include <numeric>

namespace expert_parallel {
namespace {

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

moe_layer::moe_layer(const ranks& job, const placement& where, int top_k, int hidden_size)
    : job_(job),
      where_(where),
      top_k_(top_k),
      hidden_size_(hidden_size),
      expert_map_(where.expert_map(job.rank())) {
  if (where.num_ranks() != job.size())
    job.fail("the placement is for " + std::to_string(where.num_ranks()) + " ranks, expected " +
             std::to_string(job.size()));
  job.check(MPI_Type_contiguous(hidden_size, MPI_FLOAT, &row_), "make the type of a row");
  job.check(MPI_Type_commit(&row_), "make the type of a row");
  for (parts_of_ranks* side : {&leaving_, &arriving_, &announced_out_, &announced_in_}) {
    side->counts.resize(at(job.size()));
    side->first.resize(at(job.size()));
  }
  const int own = where.slots_of(job.rank());
  for (int rank = 0; rank < job.size(); ++rank) {
    const bool is_other = rank != job.rank();
    announced_out_.counts[at(rank)] = is_other ? where.slots_of(rank) : 0;
    announced_out_.first[at(rank)] = where.first_slot(rank);
    announced_out_.total += announced_out_.counts[at(rank)];
    announced_in_.counts[at(rank)] = is_other ? own : 0;
    announced_in_.first[at(rank)] = rank * own;
  }
  next_arrived_.resize(at(job.size()));
}

moe_layer::~moe_layer() {
  MPI_Type_free(&row_);
}

call_report moe_layer::forward(const adaptive_k::routing_output<>& routed, const float* x,
                               std::int64_t num_tokens, const expert_function& run, float* y) {
  report_ = {};
  group(routed, x, num_tokens);
  next_own_ = where_.first_slot(job_.rank());
  MPI_Request announced = MPI_REQUEST_NULL;
  announce(&announced);
  run_own_while(&announced, run, "the numbers of rows from other ranks");
  count_arrivals();
  MPI_Request dispatched =
      send_rows(inputs_.data(), leaving_, arrived_.data(), arriving_, "send rows to experts");
  run_own_while(&dispatched, run, "rows for this rank's experts");
  run_arrivals(run);
  MPI_Request returned =
      send_rows(answers_.data(), arriving_, outputs_.data(), leaving_, "send rows back");
  run_own_while(&returned, run, "rows from other ranks' experts");
  while (run_next_own(run)) continue;

  adaptive_k::combine_input<float, float> rows;
  rows.expert_outputs = outputs_.data();
  rows.row_of_slot = row_of_slot_.data();
  rows.topk_weights = routed.topk_weights;
  const adaptive_k::status combined =
      adaptive_k::combine_experts({num_tokens, top_k_, hidden_size_, 0}, rows, y);
  if (!combined.ok()) job_.fail(combined.message());
  return report_;
}

// The library's permutation with slots for local experts: rows are in order of slot, and so of
// rank.
void moe_layer::group(const adaptive_k::routing_output<>& routed, const float* x,
                      std::int64_t num_tokens) {
  const int slots = where_.num_slots();
  const adaptive_k::permutation_shape shape = {num_tokens, top_k_, where_.num_experts(), slots, 1};
  slot_counts_.resize(at(slots));
  slot_offsets_.resize(at(slots + 1));
  sorted_tokens_.resize(at(std::max<std::int64_t>(1, adaptive_k::permuted_capacity(shape))));
  row_of_slot_.resize(at(std::max<std::int64_t>(1, num_tokens * top_k_)));
  adaptive_k::permutation_output order;
  order.expert_counts = slot_counts_.data();
  order.expert_offsets = slot_offsets_.data();
  order.sorted_tokens = sorted_tokens_.data();
  order.row_of_slot = row_of_slot_.data();
  const adaptive_k::status grouped = adaptive_k::permute<std::int32_t>(
      shape, {routed.topk_ids, routed.topk_counts, expert_map_.data()}, order);
  if (!grouped.ok()) job_.fail(grouped.message());

  const std::int32_t pairs = slot_offsets_.back();
  inputs_.resize(at(std::max(1, pairs)) * at(hidden_size_));
  outputs_.resize(inputs_.size());
  for (std::int32_t row = 0; row < pairs; ++row)
    std::copy_n(x + std::int64_t{sorted_tokens_[at(row)]} * hidden_size_, hidden_size_,
                inputs_.data() + std::int64_t{row} * hidden_size_);
  for (int rank = 0; rank < job_.size(); ++rank) {
    const std::int32_t first = slot_offsets_[at(where_.first_slot(rank))];
    const std::int32_t last = slot_offsets_[at(where_.first_slot(rank + 1))];
    leaving_.first[at(rank)] = first;
    leaving_.counts[at(rank)] = rank == job_.rank() ? 0 : last - first;
  }
  leaving_.total = std::accumulate(leaving_.counts.begin(), leaving_.counts.end(), 0);
  report_.sent.rows = static_cast<std::uint64_t>(leaving_.total);
  report_.sent.bytes_back = report_.sent.rows * 4 * static_cast<std::uint64_t>(hidden_size_);
  report_.sent.bytes_out = report_.sent.bytes_back;
}

// Every other rank learns how many rows come for each of its slots.
void moe_layer::announce(MPI_Request* announced) {
  const int own = where_.slots_of(job_.rank());
  arriving_counts_.assign(at(job_.size()) * at(own), 0);
  report_.sent.bytes_out += 4 * static_cast<std::uint64_t>(announced_out_.total);
  job_.check(
      MPI_Ialltoallv(slot_counts_.data(), announced_out_.counts.data(), announced_out_.first.data(),
                     MPI_INT32_T, arriving_counts_.data(), announced_in_.counts.data(),
                     announced_in_.first.data(), MPI_INT32_T, job_.communicator(), announced),
      "send the numbers of rows");
}

void moe_layer::count_arrivals() {
  const int own = where_.slots_of(job_.rank());
  std::int64_t total = 0;
  for (int rank = 0; rank < job_.size(); ++rank) {
    const auto* counts = arriving_counts_.data() + at(rank) * at(own);
    const std::int64_t rows = std::accumulate(counts, counts + own, std::int64_t{0});
    if (rows < 0 || total + rows > INT_MAX)
      job_.fail("rank " + std::to_string(rank) + " announces " + std::to_string(rows) +
                " rows, expected 0 or more, and fewer than 2^31 of all ranks");
    arriving_.counts[at(rank)] = static_cast<int>(rows);
    arriving_.first[at(rank)] = static_cast<int>(total);
    total += rows;
  }
  arriving_.total = static_cast<int>(total);
  arrived_.resize(at(std::max(1, arriving_.total)) * at(hidden_size_));
  answers_.resize(arrived_.size());
}

MPI_Request moe_layer::send_rows(const float* from, const parts_of_ranks& leaving, float* to,
                                 const parts_of_ranks& arriving, const char* what) const {
  MPI_Request sent = MPI_REQUEST_NULL;
  job_.check(MPI_Ialltoallv(from, leaving.counts.data(), leaving.first.data(), row_, to,
                            arriving.counts.data(), arriving.first.data(), row_,
                            job_.communicator(), &sent),
             what);
  return sent;
}

bool moe_layer::run_next_own(const expert_function& run) {
  const int end = where_.first_slot(job_.rank() + 1);
  while (next_own_ < end && slot_counts_[at(next_own_)] == 0) ++next_own_;
  if (next_own_ == end) return false;
  const std::int64_t rows = slot_counts_[at(next_own_)];
  const std::int64_t first = std::int64_t{slot_offsets_[at(next_own_)]} * hidden_size_;
  run(next_own_, inputs_.data() + first, rows, outputs_.data() + first);
  report_.rows_run += static_cast<std::uint64_t>(rows);
  ++next_own_;
  return true;
}

void moe_layer::run_own_while(MPI_Request* request, const expert_function& run, const char* what) {
  const std::uint64_t before = report_.rows_run;
  while (!job_.is_done(request, what) && run_next_own(run)) continue;
  report_.rows_overlapped += report_.rows_run - before;
  const double start = now_s();
  job_.wait(request, what);
  report_.wait_s += now_s() - start;
}

// Each expert once, on the rows of all other ranks.
void moe_layer::run_arrivals(const expert_function& run) {
  const int own = where_.slots_of(job_.rank());
  const auto hidden = at(hidden_size_);
  std::copy(arriving_.first.begin(), arriving_.first.end(), next_arrived_.begin());
  for (int i = 0; i < own; ++i) {
    const auto for_each_part = [&](auto take) {
      std::int64_t row = 0;
      for (int rank = 0; rank < job_.size(); ++rank) {
        const std::int64_t rows = arriving_counts_[at(rank) * at(own) + at(i)];
        take(at(next_arrived_[at(rank)]) * hidden, at(row) * hidden, at(rows) * hidden);
        row += rows;
      }
      return row;
    };
    const std::int64_t rows = for_each_part([](auto, auto, auto) {});
    if (rows == 0) continue;
    gathered_.resize(std::max(gathered_.size(), at(rows) * hidden));
    computed_.resize(gathered_.size());
    for_each_part([&](std::size_t from, std::size_t to, std::size_t size) {
      std::copy_n(arrived_.data() + from, size, gathered_.data() + to);
    });
    run(where_.first_slot(job_.rank()) + i, gathered_.data(), rows, computed_.data());
    for_each_part([&](std::size_t to, std::size_t from, std::size_t size) {
      std::copy_n(computed_.data() + from, size, answers_.data() + to);
    });
    for (int rank = 0; rank < job_.size(); ++rank)
      next_arrived_[at(rank)] += arriving_counts_[at(rank) * at(own) + at(i)];
    report_.rows_run += static_cast<std::uint64_t>(rows);
  }
}

}  // namespace expert_parallel

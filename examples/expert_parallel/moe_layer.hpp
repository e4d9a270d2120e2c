// The experts of one MoE layer, spread over the ranks of an MPI job.
#pragma once

#include <adaptive_k/types.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "placement.hpp"
#include "ranks.hpp"
#include "traffic.hpp"

namespace expert_parallel {

/// Runs the expert in `slot`, one of this rank's, on `rows` rows: outputs [rows, H] of inputs
/// [rows, H]. A row's output must not depend on the rows beside it: then the layer's output has the
/// same bits for every number of ranks and every placement.
using expert_function =
    std::function<void(int slot, const float* inputs, std::int64_t rows, float* outputs)>;

/// What a call did on this rank, counted from what was handed to MPI.
struct call_report {
  traffic sent;
  std::uint64_t rows_run = 0;         ///< by this rank's experts, for all ranks
  std::uint64_t rows_overlapped = 0;  ///< of these, while rows were under way
  double wait_s = 0.0;                ///< seconds without anything to do but wait for other ranks

  call_report& operator+=(const call_report& other) noexcept {
    sent += other.sent;
    rows_run += other.rows_run;
    rows_overlapped += other.rows_overlapped;
    wait_s += other.wait_s;
    return *this;
  }
};

/// Sends each live (token, expert) pair to the rank that has the expert, runs what arrives, and
/// sums up what comes back in order of the token's slots. What the policy dropped does not travel.
/// While rows are under way, this rank's experts run the tokens of its own.
class moe_layer {
 public:
  /// `where` is the same on all ranks; slots are at most 1024. `job` must outlive the layer.
  moe_layer(const ranks& job, const placement& where, int top_k, int hidden_size);
  ~moe_layer();
  moe_layer(const moe_layer&) = delete;
  moe_layer& operator=(const moe_layer&) = delete;

  /// y [T, H] = sum over slots of weight * expert(x [T, H]), all ranks together: each calls with
  /// its own tokens, of which it may have none, routed by `routed` (what a routing call wrote).
  /// Ends the job where a rank does not answer, or a routing is refused.
  call_report forward(const adaptive_k::routing_output<>& routed, const float* x,
                      std::int64_t num_tokens, const expert_function& run, float* y);

 private:
  struct parts_of_ranks {
    std::vector<int> counts, first;  ///< [R]: how much goes to each rank, or comes, and from where
    int total = 0;
  };

  void group(const adaptive_k::routing_output<>& routed, const float* x, std::int64_t num_tokens);
  void announce(MPI_Request* announced);
  void count_arrivals();
  MPI_Request send_rows(const float* from, const parts_of_ranks& leaving, float* to,
                        const parts_of_ranks& arriving, const char* what) const;
  /// The next of this rank's experts on this rank's tokens; false where none is left.
  bool run_next_own(const expert_function& run);
  void run_arrivals(const expert_function& run);
  /// Own experts run until `request` is complete, or none is left; then waits for it.
  void run_own_while(MPI_Request* request, const expert_function& run, const char* what);

  const ranks& job_;
  placement where_;
  int top_k_;
  int hidden_size_;
  std::vector<std::int32_t> expert_map_;  // [E], slot
  MPI_Datatype row_ = MPI_DATATYPE_NULL;  // H floats
  call_report report_;

  // Buffers, kept from call to call. P: this rank's pairs, its own experts' included; A: pairs
  // that arrive.
  std::vector<std::int32_t> slot_counts_, slot_offsets_;        // [S], [S + 1]
  std::vector<std::int32_t> sorted_tokens_, row_of_slot_;       // [P], [T, K0]
  std::vector<std::int32_t> arriving_counts_;                   // [R, own slots]
  std::vector<float> inputs_, outputs_;                         // [P, H]
  std::vector<float> arrived_, answers_, gathered_, computed_;  // [A, H]; of one expert
  std::vector<std::int64_t> next_arrived_;                      // [R], of each, to be run
  parts_of_ranks announced_out_, announced_in_, leaving_, arriving_;
  int next_own_ = 0;  // slot
};

}  // namespace expert_parallel

#include "device_layer.hpp"

#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/cuda/combine_launch.cuh>
#include <adaptive_k/cuda/launch.cuh>
#include <cstddef>

namespace expert_parallel {
namespace {

using adaptive_k::cuda::to_status;

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

/// Device memory that grows, and is never given back before the end.
template <class T>
class device_array {
 public:
  device_array() = default;
  ~device_array() { cudaFree(data_); }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;

  /// What was in it is lost where it grows. cudaFree waits for kernels that use it.
  adaptive_k::status reserve(std::int64_t count) {
    if (at(count) <= capacity_ && data_ != nullptr) return {};
    cudaFree(data_);
    data_ = nullptr;
    capacity_ = at(count > 0 ? count : 1);
    void* memory = nullptr;
    const adaptive_k::status made = to_status(cudaMalloc(&memory, capacity_ * sizeof(T)));
    data_ = static_cast<T*>(memory);
    return made;
  }
  T* get() const noexcept { return data_; }

 private:
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};

/// One output of a product, each step rounded: as the host's file, which is compiled so.
__device__ float dot(const float* x, const float* weight, int inputs, int outputs, int o) {
  float sum = 0.0f;
  for (int i = 0; i < inputs; ++i)
    sum = __fadd_rn(sum, __fmul_rn(x[i], weight[static_cast<std::int64_t>(i) * outputs + o]));
  return sum;
}

__global__ void multiply_kernel(const float* x, const float* weight, int inputs, int outputs,
                                float* y) {
  const std::int64_t row = blockIdx.x;
  for (int o = static_cast<int>(threadIdx.x); o < outputs; o += static_cast<int>(blockDim.x))
    y[row * outputs + o] = dot(x + row * inputs, weight, inputs, outputs, o);
}

__global__ void average_kernel(float* x, const float* y, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) x[i] = __fmul_rn(0.5f, __fadd_rn(x[i], y[i]));
}

/// Row r of the inputs is token sorted_tokens[r], up to the last row of the last slot.
__global__ void gather_kernel(const float* x, const std::int32_t* sorted_tokens,
                              const std::int32_t* rows, int hidden_size, float* inputs) {
  const std::int64_t row = blockIdx.x;
  if (row >= *rows) return;
  const std::int64_t token = sorted_tokens[row];
  for (int h = static_cast<int>(threadIdx.x); h < hidden_size; h += static_cast<int>(blockDim.x))
    inputs[row * hidden_size + h] = x[token * hidden_size + h];
}

/// Rows in `parts` runs, each in order of slot: counts [parts, slots].
struct experts_params {
  device_experts experts;
  const std::int32_t* counts;
  int parts;
  int slots;
  int hidden_size;
  int intermediate_size;
  const float* inputs;
  float* outputs;
};

/// A block a row: clear, not fast. An engine has a grouped product here.
__global__ void experts_kernel(experts_params params) {
  extern __shared__ float activations[];  // [F]
  const std::int64_t row = blockIdx.x;
  std::int64_t end = 0;
  int slot = 0;
  for (int i = 0; i < params.parts * params.slots; ++i) {
    end += params.counts[i];
    slot = i % params.slots;
    if (row < end) break;
  }
  const int hidden = params.hidden_size, width = params.intermediate_size;
  const std::int64_t first = static_cast<std::int64_t>(slot) * hidden * width;
  const float* x = params.inputs + row * hidden;
  for (int f = static_cast<int>(threadIdx.x); f < width; f += static_cast<int>(blockDim.x)) {
    const float gate = dot(x, params.experts.gate + first, hidden, width, f);
    const float up = dot(x, params.experts.up + first, hidden, width, f);
    activations[f] = __fmul_rn(__fmul_rn(gate, adaptive_k::math::sigmoid(gate)), up);
  }
  __syncthreads();
  for (int h = static_cast<int>(threadIdx.x); h < hidden; h += static_cast<int>(blockDim.x))
    params.outputs[row * hidden + h] =
        dot(activations, params.experts.down + first, width, hidden, h);
}

constexpr unsigned threads = 128;

adaptive_k::status launched() {
  return to_status(cudaGetLastError());
}

}  // namespace

struct device_layer::state {
  state(const placement& placed, int own_rank, const adaptive_k::router& router, int hidden_size,
        int intermediate_size)
      : where(placed),
        rank(own_rank),
        own(placed.slots_of(own_rank)),
        gating(router.model()),
        hidden(hidden_size),
        intermediate(intermediate_size) {
    validity = plans.upload(router, nullptr);
    if (validity.ok()) validity = upload_map();
  }

  adaptive_k::status upload_map() {
    const std::vector<std::int32_t> map = where.expert_map(rank);
    adaptive_k::status made = expert_map.reserve(where.num_experts());
    if (made.ok()) made = slot_counts.reserve(where.num_slots());
    if (made.ok()) made = slot_offsets.reserve(where.num_slots() + 1);
    if (made.ok()) made = arriving_counts.reserve(std::int64_t{where.num_ranks()} * own);
    if (made.ok())
      made =
          to_status(cudaMemset(arriving_counts.get(), 0,
                               at(std::int64_t{where.num_ranks()} * own) * sizeof(std::int32_t)));
    if (made.ok())
      made = to_status(cudaMemcpy(expert_map.get(), map.data(), map.size() * sizeof(std::int32_t),
                                  cudaMemcpyHostToDevice));
    return made;
  }

  adaptive_k::status run(const device_experts& experts, const std::int32_t* counts, int parts,
                         std::int64_t rows, const float* from, float* to, cudaStream_t stream) {
    if (rows == 0) return {};
    const experts_params params = {experts, counts, parts, own, hidden, intermediate, from, to};
    experts_kernel<<<static_cast<unsigned>(rows), threads, at(intermediate) * sizeof(float),
                     stream>>>(params);
    return launched();
  }

  placement where;
  int rank, own;
  adaptive_k::gating gating;
  int hidden, intermediate;
  adaptive_k::status validity;
  adaptive_k::cuda::device_plans plans;
  std::int64_t num_tokens = 0;
  device_array<std::int32_t> expert_map, slot_counts, slot_offsets, arriving_counts;
  device_array<std::int32_t> ids, counts, sorted_tokens, row_of_slot;
  device_array<float> weights, inputs, outputs, arrived, answers;
  device_array<unsigned char> workspace;
  std::size_t workspace_bytes = 0;
  rows_of_ranks leaving, arriving;
  std::int64_t own_first = 0, own_rows = 0, arriving_rows = 0;
};

device_layer::device_layer(const placement& where, int rank, const adaptive_k::router& router,
                           int hidden_size, int intermediate_size)
    : state_(std::make_unique<state>(where, rank, router, hidden_size, intermediate_size)) {}

device_layer::~device_layer() = default;

adaptive_k::status device_layer::replace(const adaptive_k::router& router, cudaStream_t stream) {
  return state_->plans.upload(router, stream);
}

adaptive_k::status device_layer::route(int layer, const float* x, const float* logits,
                                       std::int64_t num_tokens, cudaStream_t stream) {
  state& s = *state_;
  if (!s.validity.ok()) return s.validity;
  s.num_tokens = num_tokens;
  const int slots = s.where.num_slots();
  const std::int64_t pairs = num_tokens * s.gating.top_k;
  const adaptive_k::logits_view<float> view{logits, num_tokens, s.gating.num_experts, 0};
  const adaptive_k::cuda::device_router router(s.gating, s.plans.ref());
  adaptive_k::cuda::expert_major order;
  order.num_local_experts = slots;
  std::size_t bytes = 0;
  adaptive_k::status result = router.route_permute(layer, view, adaptive_k::routing_replay<>{},
                                                   adaptive_k::routing_output<>{}, order, nullptr,
                                                   {}, nullptr, &bytes, stream);
  if (result.ok() && bytes > s.workspace_bytes) {
    result = s.workspace.reserve(static_cast<std::int64_t>(bytes));
    s.workspace_bytes = bytes;
    if (result.ok()) result = to_status(cudaMemsetAsync(s.workspace.get(), 0, 16, stream));
  }
  for (device_array<std::int32_t>* array : {&s.ids, &s.sorted_tokens, &s.row_of_slot})
    if (result.ok()) result = array->reserve(pairs);
  if (result.ok()) result = s.counts.reserve(num_tokens);
  if (result.ok()) result = s.weights.reserve(pairs);
  for (device_array<float>* array : {&s.inputs, &s.outputs})
    if (result.ok()) result = array->reserve(pairs * s.hidden);
  if (!result.ok()) return result;
  order.expert_map = s.expert_map.get();
  order.output.expert_counts = s.slot_counts.get();
  order.output.expert_offsets = s.slot_offsets.get();
  order.output.sorted_tokens = s.sorted_tokens.get();
  order.output.row_of_slot = s.row_of_slot.get();
  bytes = s.workspace_bytes;
  result = router.route_permute(
      layer, view, adaptive_k::routing_replay<>{},
      adaptive_k::routing_output<>{s.ids.get(), s.weights.get(), s.counts.get()}, order, nullptr,
      {}, s.workspace.get(), &bytes, stream);
  if (!result.ok() || pairs == 0) return result;
  gather_kernel<<<static_cast<unsigned>(pairs), threads, 0, stream>>>(
      x, s.sorted_tokens.get(), s.slot_offsets.get() + slots, s.hidden, s.inputs.get());
  return launched();
}

adaptive_k::status device_layer::plan(const std::int32_t* slot_counts,
                                      const std::int32_t* arriving_counts) {
  state& s = *state_;
  const int ranks = s.where.num_ranks();
  for (rows_of_ranks* side : {&s.leaving, &s.arriving}) {
    side->counts.assign(at(ranks), 0);
    side->first.assign(at(ranks), 0);
  }
  std::int64_t leaving = 0, arriving = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    s.leaving.first[at(rank)] = leaving;
    s.arriving.first[at(rank)] = arriving;
    std::int64_t rows = 0;
    for (int slot = s.where.first_slot(rank); slot < s.where.first_slot(rank + 1); ++slot)
      rows += slot_counts[slot];
    if (rank == s.rank) {
      s.own_first = leaving;
      s.own_rows = rows;
    } else {
      s.leaving.counts[at(rank)] = rows;
      for (int i = 0; i < s.own; ++i)
        s.arriving.counts[at(rank)] += arriving_counts[rank * s.own + i];
    }
    leaving += rows;
    arriving += s.arriving.counts[at(rank)];
  }
  s.arriving_rows = arriving;
  const adaptive_k::status grown = s.arrived.reserve(arriving * s.hidden);
  return grown.ok() ? s.answers.reserve(arriving * s.hidden) : grown;
}

const std::int32_t* device_layer::slot_counts() const noexcept {
  return state_->slot_counts.get();
}
std::int32_t* device_layer::arriving_counts() noexcept {
  return state_->arriving_counts.get();
}
const rows_of_ranks& device_layer::leaving() const noexcept {
  return state_->leaving;
}
const rows_of_ranks& device_layer::arriving() const noexcept {
  return state_->arriving;
}
const float* device_layer::inputs() const noexcept {
  return state_->inputs.get();
}
float* device_layer::outputs() noexcept {
  return state_->outputs.get();
}
float* device_layer::arrived() noexcept {
  return state_->arrived.get();
}
const float* device_layer::answers() const noexcept {
  return state_->answers.get();
}

adaptive_k::status device_layer::run_own(const device_experts& experts, cudaStream_t stream) {
  state& s = *state_;
  const std::int64_t first = s.own_first * s.hidden;
  return s.run(experts, s.slot_counts.get() + s.where.first_slot(s.rank), 1, s.own_rows,
               s.inputs.get() + first, s.outputs.get() + first, stream);
}

adaptive_k::status device_layer::run_arrivals(const device_experts& experts, cudaStream_t stream) {
  state& s = *state_;
  return s.run(experts, s.arriving_counts.get(), s.where.num_ranks(), s.arriving_rows,
               s.arrived.get(), s.answers.get(), stream);
}

adaptive_k::status device_layer::combine(float* y, cudaStream_t stream) {
  state& s = *state_;
  adaptive_k::combine_input<float, float> rows;
  rows.expert_outputs = s.outputs.get();
  rows.row_of_slot = s.row_of_slot.get();
  rows.topk_weights = s.weights.get();
  return adaptive_k::cuda::combine_experts({s.num_tokens, s.gating.top_k, s.hidden, 0}, rows, y,
                                           false, stream);
}

adaptive_k::status multiply_on_device(const float* x, const float* weight, std::int64_t rows,
                                      int inputs, int outputs, float* y, cudaStream_t stream) {
  if (rows == 0) return {};
  multiply_kernel<<<static_cast<unsigned>(rows), threads, 0, stream>>>(x, weight, inputs, outputs,
                                                                       y);
  return launched();
}

adaptive_k::status average_on_device(float* x, const float* y, std::int64_t count,
                                     cudaStream_t stream) {
  if (count == 0) return {};
  average_kernel<<<static_cast<unsigned>((count + threads - 1) / threads), threads, 0, stream>>>(
      x, y, count);
  return launched();
}

}  // namespace expert_parallel

#include "moe_layer.cuh"

#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/combine_launch.cuh"

namespace custom_moe_layer {
namespace {

namespace math = adaptive_k::math;

/// Products as sums of fma in one order, and adaptive_k's own sigmoid: host and device then agree
/// to the last bit. A layer of your own has tensor cores here.
__host__ __device__ float dot(const float* a, const float* b, int size) {
  float sum = 0.0f;
  for (int i = 0; i < size; ++i) sum = math::fma(a[i], b[i], sum);
  return sum;
}

__host__ __device__ float swiglu(float gate, float up) {
  return gate * math::sigmoid(gate) * up;
}

/// Block (b, c): the rows b * block_rows.. of one expert, column c * blockDim.x + threadIdx.x.
struct product_params {
  layer_shape shape;
  layer_weights weights;
  layer_buffers buffers;
  const float* x;
  int num_tokens;
};

__global__ void gate_up_kernel(product_params params) {
  const int expert = params.buffers.block_experts[blockIdx.x];
  const int f = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (expert < 0 || f >= params.shape.intermediate_size) return;
  const int hidden = params.shape.hidden_size;
  const std::int64_t weight_row =
      (static_cast<std::int64_t>(expert) * params.shape.intermediate_size + f) * hidden;
  for (int i = 0; i < block_rows; ++i) {
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * block_rows + i;
    const int token = params.buffers.sorted_tokens[row];
    if (token >= params.num_tokens) break;  // padding ends an expert's rows
    const float* input = params.x + static_cast<std::int64_t>(token) * hidden;
    params.buffers.activations[row * params.shape.intermediate_size + f] =
        swiglu(dot(params.weights.gate + weight_row, input, hidden),
               dot(params.weights.up + weight_row, input, hidden));
  }
}

__global__ void down_kernel(product_params params) {
  const int expert = params.buffers.block_experts[blockIdx.x];
  const int h = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (expert < 0 || h >= params.shape.hidden_size) return;
  const int intermediate = params.shape.intermediate_size;
  const float* weight =
      params.weights.down +
      (static_cast<std::int64_t>(expert) * params.shape.hidden_size + h) * intermediate;
  for (int i = 0; i < block_rows; ++i) {
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * block_rows + i;
    if (params.buffers.sorted_tokens[row] >= params.num_tokens) break;
    params.buffers.expert_outputs[row * params.shape.hidden_size + h] =
        dot(weight, params.buffers.activations + row * intermediate, intermediate);
  }
}

adaptive_k::permutation_shape order_of(const layer_shape& shape, std::int64_t num_tokens) {
  return {num_tokens, shape.top_k, shape.num_experts, 0, block_rows};
}

}  // namespace

std::int64_t capacity(const layer_shape& shape, std::int64_t num_tokens) {
  return adaptive_k::permuted_capacity(order_of(shape, num_tokens));
}

adaptive_k::status forward(const layer_shape& shape, const layer_weights& weights,
                           const adaptive_k::cuda::device_router& router, const float* x,
                           const float* logits, std::int64_t num_tokens,
                           const layer_buffers& buffers, float* output, cudaStream_t stream) {
  if (num_tokens == 0) return {};
  adaptive_k::cuda::expert_major order;
  order.block_size = block_rows;
  order.output.sorted_tokens = buffers.sorted_tokens;
  order.output.row_of_slot = buffers.row_of_slot;
  order.output.block_experts = buffers.block_experts;
  std::size_t bytes = buffers.workspace_bytes;
  adaptive_k::status result = router.route_permute(
      0, adaptive_k::logits_view<float>{logits, num_tokens, shape.num_experts, 0},
      adaptive_k::routing_replay<>{},
      adaptive_k::routing_output<>{buffers.topk_ids, buffers.topk_weights, buffers.topk_counts},
      order, nullptr, {}, buffers.workspace, &bytes, stream);
  if (!result.ok()) return result;

  constexpr unsigned threads = 64;
  const product_params params = {shape, weights, buffers, x, static_cast<int>(num_tokens)};
  const auto row_blocks = static_cast<unsigned>(capacity(shape, num_tokens) / block_rows);
  const auto columns = [](int size) {
    return (static_cast<unsigned>(size) + threads - 1) / threads;
  };
  gate_up_kernel<<<dim3(row_blocks, columns(shape.intermediate_size)), threads, 0, stream>>>(
      params);
  down_kernel<<<dim3(row_blocks, columns(shape.hidden_size)), threads, 0, stream>>>(params);
  result = adaptive_k::cuda::to_status(cudaGetLastError());
  if (!result.ok()) return result;

  adaptive_k::combine_input<float, float> rows;
  rows.expert_outputs = buffers.expert_outputs;
  rows.row_of_slot = buffers.row_of_slot;
  rows.topk_weights = buffers.topk_weights;
  return adaptive_k::cuda::combine_experts({num_tokens, shape.top_k, shape.hidden_size, 0}, rows,
                                           output, false, stream);
}

adaptive_k::status forward_on_host(const layer_shape& shape, const layer_weights& weights,
                                   const float* x, std::int64_t num_tokens,
                                   const std::int32_t* topk_ids, const float* topk_weights,
                                   const std::int32_t* topk_counts, float* output) {
  const auto hidden = static_cast<std::size_t>(shape.hidden_size);
  const auto intermediate = static_cast<std::size_t>(shape.intermediate_size);
  const auto slots = static_cast<std::size_t>(num_tokens * shape.top_k);
  std::vector<float> rows(slots * hidden), activations(intermediate);
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const std::size_t token = slot / static_cast<std::size_t>(shape.top_k);
    if (slot % static_cast<std::size_t>(shape.top_k) >=
        static_cast<std::size_t>(topk_counts[token]))
      continue;
    const std::size_t expert = static_cast<std::size_t>(topk_ids[slot]) * intermediate * hidden;
    const float* input = x + token * hidden;
    for (std::size_t f = 0; f < intermediate; ++f)
      activations[f] = swiglu(dot(weights.gate + expert + f * hidden, input, shape.hidden_size),
                              dot(weights.up + expert + f * hidden, input, shape.hidden_size));
    for (std::size_t h = 0; h < hidden; ++h)
      rows[slot * hidden + h] = dot(weights.down + expert + h * intermediate, activations.data(),
                                    shape.intermediate_size);
  }
  adaptive_k::combine_input<float, float> input;
  input.expert_outputs = rows.data();
  input.topk_counts = topk_counts;
  input.topk_weights = topk_weights;
  return adaptive_k::combine_experts({num_tokens, shape.top_k, shape.hidden_size, 0}, input,
                                     output);
}

}  // namespace custom_moe_layer

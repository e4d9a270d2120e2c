// Runs the layer on the device and on the host, with every token's own k, and compares the outputs.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "moe_layer.cuh"
#include "policy.hpp"

namespace {

using namespace custom_moe_layer;  // NOLINT(google-build-using-namespace)

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

void check(const adaptive_k::status& result) {
  if (result.ok()) return;
  std::fprintf(stderr, "adaptive_k: %s\n", result.message());
  std::exit(1);
}

/// Device memory, zeroed or copied from the host; freed with the process.
template <class T>
T* on_device(std::size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)));
  check(cudaMemset(memory, 0, count * sizeof(T)));
  return static_cast<T*>(memory);
}
template <class T>
T* on_device(const std::vector<T>& values) {
  T* memory = on_device<T>(values.size());
  check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

/// Multiples of 2^-10 between -scale and scale, the same everywhere.
std::vector<float> numbers(std::size_t count, float scale, std::uint32_t seed) {
  std::vector<float> made(count);
  for (float& value : made) {
    seed = seed * 1664525u + 1013904223u;
    value = scale * (static_cast<float>(seed >> 21) - 1024.0f) / 1024.0f;
  }
  return made;
}

layer_buffers make_buffers(const layer_shape& shape, std::int64_t num_tokens,
                           const adaptive_k::cuda::device_router& router) {
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto slots = tokens * static_cast<std::size_t>(shape.top_k);
  const auto rows = static_cast<std::size_t>(capacity(shape, num_tokens));
  layer_buffers made = {};
  made.topk_ids = on_device<std::int32_t>(slots);
  made.topk_weights = on_device<float>(slots);
  made.topk_counts = on_device<std::int32_t>(tokens);
  made.sorted_tokens = on_device<std::int32_t>(rows);
  made.row_of_slot = on_device<std::int32_t>(slots);
  made.block_experts = on_device<std::int32_t>(rows / block_rows);
  made.activations = on_device<float>(rows * static_cast<std::size_t>(shape.intermediate_size));
  made.expert_outputs = on_device<float>(rows * static_cast<std::size_t>(shape.hidden_size));
  adaptive_k::cuda::expert_major order;
  order.block_size = block_rows;
  check(router.route_permute(
      0, adaptive_k::logits_view<float>{nullptr, num_tokens, shape.num_experts, 0},
      adaptive_k::routing_replay<>{}, adaptive_k::routing_output<>{}, order, nullptr, {}, nullptr,
      &made.workspace_bytes, nullptr));  // asks for the size only
  made.workspace = on_device<unsigned char>(made.workspace_bytes);
  return made;
}

/// Routes and runs `num_tokens` tokens by `router` and by what is uploaded of it; returns whether
/// every output has the same bits.
bool compare(const adaptive_k::router& router, adaptive_k::cuda::plans_ref plans,
             std::int64_t num_tokens) {
  const adaptive_k::gating& gating = router.model();
  const layer_shape shape = {gating.num_experts, gating.top_k, 48, 40};
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto hidden = static_cast<std::size_t>(shape.hidden_size);
  const auto expert_size = hidden * static_cast<std::size_t>(shape.intermediate_size);
  const auto experts = static_cast<std::size_t>(shape.num_experts);
  const std::vector<float> x = numbers(tokens * hidden, 1.0f, 1);
  const std::vector<float> logits = numbers(tokens * experts, 4.0f, 2);
  const std::vector<float> gate = numbers(experts * expert_size, 0.25f, 3);
  const std::vector<float> up = numbers(experts * expert_size, 0.25f, 4);
  const std::vector<float> down = numbers(experts * expert_size, 0.25f, 5);

  adaptive_k::routing_metrics metrics;
  const adaptive_k::routed_batch batch = router.route(
      0, adaptive_k::logits_view<float>{logits.data(), num_tokens, shape.num_experts, 0}, &metrics);
  check(batch.result);
  std::vector<float> expected(tokens * hidden);
  check(forward_on_host(shape, {gate.data(), up.data(), down.data()}, x.data(), num_tokens,
                        batch.topk_ids.data(), batch.topk_weights.data(), batch.topk_counts.data(),
                        expected.data()));

  bool overlaps = false;
  check(adaptive_k::cuda::overlap_supported(&overlaps));
  const adaptive_k::cuda::device_router device_router(gating, plans, adaptive_k::fill_id::minus_one,
                                                      overlaps);
  check(device_router.validity());
  const layer_buffers buffers = make_buffers(shape, num_tokens, device_router);
  float* output = on_device<float>(tokens * hidden);
  check(forward(shape, {on_device(gate), on_device(up), on_device(down)}, device_router,
                on_device(x), on_device(logits), num_tokens, buffers, output, nullptr));
  std::vector<float> made(tokens * hidden);
  check(cudaMemcpy(made.data(), output, made.size() * sizeof(float), cudaMemcpyDeviceToHost));
  const bool same = std::memcmp(made.data(), expected.data(), made.size() * sizeof(float)) == 0;
  std::printf("%lld tokens, %.1f%% of expert calls saved: %s\n", static_cast<long long>(num_tokens),
              100.0 * metrics.expert_savings(),
              same ? "the host's numbers, bit for bit" : "other numbers than the host");
  return same;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 0;
  }
  const adaptive_k::router calibrated = load_router("");
  adaptive_k::cuda::device_plans plans;
  check(plans.upload(calibrated, nullptr));
  bool same = compare(calibrated, plans.ref(), 50);
  same &= compare(calibrated, plans.ref(), 700);  // two launches where the first takes one
  // Other policies, in the same memory: a captured graph would follow them too.
  for (const char* policy : {"calibrated,lambda=0.02", "top_p:0.7"}) {
    const adaptive_k::router next = load_router(policy);
    check(plans.upload(next, nullptr));
    same &= compare(next, plans.ref(), 50);
  }
  return same ? 0 : 1;
}

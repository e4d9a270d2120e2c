// Routes by the policy and the gating of examples/own_policy on the host and by their own kernel,
// as the example's page shows it: every output has the same bits. The test puts both beside this
// file.
#include <cuda_runtime_api.h>
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/cuda/launch.cuh>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "own_policy.hpp"

namespace {

constexpr int num_experts = 64;
constexpr int top_k = 8;
constexpr int num_tokens = 70;  // the last warp is not full
constexpr std::size_t num_slots = std::size_t{num_tokens} * top_k;

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

template <class T>
T* device_memory(std::size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)));
  return static_cast<T*>(memory);
}

/// Whether device memory holds the bytes of `expected`; says so where it does not.
template <class T>
bool same_bits(const char* name, const T* device, const std::vector<T>& expected) {
  std::vector<T> made(expected.size());
  check(cudaMemcpy(made.data(), device, made.size() * sizeof(T), cudaMemcpyDeviceToHost));
  const bool same = std::memcmp(made.data(), expected.data(), made.size() * sizeof(T)) == 0;
  if (!same) std::printf("%s: OTHER BITS\n", name);
  return same;
}

/// Steps of 1/64 in -7..1, of which a ReLU leaves some 8 a token: there are ties, and few scores or
/// none. One token has a NaN.
std::vector<float> made_up_logits() {
  std::vector<float> logits(std::size_t{num_tokens} * num_experts);
  std::uint32_t state = 1;
  for (float& logit : logits) {
    state = state * 1664525u + 1013904223u;
    logit = static_cast<float>(state >> 23) / 64.0f - 7.0f;
  }
  for (int e = 0; e < num_experts; ++e) logits[e] = -1.0f;
  logits[num_experts] = std::nanf("");
  return logits;
}

}  // namespace

int main() {
  constexpr int layer = 0;
  constexpr cudaStream_t stream = nullptr;
  const std::vector<float> host_logits = made_up_logits();
  engine::relu_gating model;
  model.num_experts = num_experts;
  model.top_k = top_k;
  const adaptive_k::basic_router router{model, engine::mass_or_gap{}};
  adaptive_k::routing_metrics metrics;
  const adaptive_k::routed_batch host = router.route(
      layer, adaptive_k::logits_view<float>{host_logits.data(), num_tokens, num_experts}, &metrics);
  check(host.result);

  float* const device_logits = device_memory<float>(host_logits.size());
  check(cudaMemcpy(device_logits, host_logits.data(), host_logits.size() * sizeof(float),
                   cudaMemcpyHostToDevice));
  const adaptive_k::logits_view<float> logits = {device_logits, num_tokens, num_experts};
  const adaptive_k::routing_output<> output = {
      device_memory<std::int32_t>(num_slots), device_memory<float>(num_slots),
      device_memory<std::int32_t>(num_tokens), device_memory<float>(num_tokens)};
#include "page.inc"
  check(cudaDeviceSynchronize());

  bool same = same_bits("ids", output.topk_ids, host.topk_ids);
  same &= same_bits("weights", output.topk_weights, host.topk_weights);
  same &= same_bits("counts", output.topk_counts, host.topk_counts);
  same &= same_bits("signal", output.signal, host.signal);
  int different_k = 0;
  for (const std::uint64_t tokens : metrics.k_histogram) different_k += tokens != 0 ? 1 : 0;
  std::printf("saved %.1f%% of expert calls, %d different K: %s\n", 100 * metrics.expert_savings(),
              different_k, same ? "the host's bits" : "OTHER BITS");
  return same ? 0 : 1;
}

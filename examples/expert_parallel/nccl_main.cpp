// The same model on GPUs, a rank each, by NCCL: the same outputs as main.cpp's, bit for bit.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "agreement.hpp"
#include "device_layer.hpp"
#include "experts.hpp"
#include "nccl_job.hpp"
#include "options.hpp"
#include "ranks.hpp"
#include "shared_policy.hpp"

namespace {

using namespace expert_parallel;  // NOLINT(google-build-using-namespace)

/// Device memory with a copy of `values`; freed with the process.
float* on_device(const nccl_job& gpus, const std::vector<float>& values) {
  void* memory = nullptr;
  const std::size_t bytes = std::max<std::size_t>(1, values.size()) * sizeof(float);
  gpus.check(cudaMalloc(&memory, bytes), "take device memory");
  gpus.check(
      cudaMemcpy(memory, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice),
      "copy to the device");
  return static_cast<float*>(memory);
}

struct layer_on_device {
  std::unique_ptr<device_layer> layer;
  device_experts experts;
  const float* router = nullptr;  // [H, E]
};

void run(const ranks& job, const options& given) {
  if (given.redundant != 0 || given.hold != 0.0 || given.fault.what != planned_fault::kind::none)
    job.fail("--redundant, --hold and --fault are the host program's, expected none of them");
  require_agreement(job, "options",
                    std::to_string(given.tokens) + " tokens, " + std::to_string(given.steps) +
                        " steps, hidden " + std::to_string(given.hidden) + ", intermediate " +
                        std::to_string(given.intermediate));
  const shared_policy policy(job, given.preset, given.policy);
  const adaptive_k::gating& gating = policy.preset().model;
  nccl_job gpus(job);
  const model_shape shape = {gating.num_experts, given.hidden, given.intermediate,
                             policy.preset().num_moe_layers};
  const placement where = placement::contiguous(gating.num_experts, job.size());
  std::vector<layer_on_device> layers;
  for (int l = 0; l < shape.num_layers; ++l) {
    const made_up_layer made(shape, l, where, job.rank());
    layers.push_back({std::make_unique<device_layer>(where, job.rank(), policy.router(),
                                                     given.hidden, given.intermediate),
                      {on_device(gpus, made.all_gates()), on_device(gpus, made.all_ups()),
                       on_device(gpus, made.all_downs())},
                      on_device(gpus, made.router())});
  }
  const std::int64_t first = std::int64_t{given.tokens} * job.rank() / job.size();
  const std::int64_t tokens = std::int64_t{given.tokens} * (job.rank() + 1) / job.size() - first;
  std::vector<float> x(static_cast<std::size_t>(tokens * given.hidden));
  float* const device_x = on_device(gpus, x);
  float* const device_y = on_device(gpus, x);
  float* const logits =
      on_device(gpus, std::vector<float>(static_cast<std::size_t>(tokens * gating.num_experts)));

  std::uint64_t hash = hash_bytes("", 0);
  for (int step = 0; step < given.steps; ++step) {
    for (std::int64_t t = 0; t < tokens; ++t)
      make_token(step, first + t, given.hidden, x.data() + t * given.hidden);
    gpus.check(cudaMemcpyAsync(device_x, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice,
                               gpus.compute()),
               "copy tokens");
    for (int l = 0; l < shape.num_layers; ++l) {
      layer_on_device& each = layers[static_cast<std::size_t>(l)];
      gpus.check(multiply_on_device(device_x, each.router, tokens, given.hidden, gating.num_experts,
                                    logits, gpus.compute()));
      gpus.forward(*each.layer, where, l, each.experts, device_x, logits, tokens, given.hidden,
                   device_y);
      gpus.check(average_on_device(device_x, device_y, tokens * given.hidden, gpus.compute()));
    }
    gpus.check(cudaMemcpyAsync(x.data(), device_x, x.size() * sizeof(float), cudaMemcpyDeviceToHost,
                               gpus.compute()),
               "copy outputs");
    gpus.wait("the outputs of a step");
    std::vector<std::uint64_t> sum = {0};
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t number = first + t;
      sum[0] += hash_bytes(x.data() + t * given.hidden,
                           sizeof(float) * static_cast<std::size_t>(given.hidden),
                           hash_bytes(&number, sizeof number));
    }
    job.reduce(&sum, MPI_SUM, "the hash of all outputs");
    hash = hash_bytes(sum.data(), sizeof sum[0], hash);
  }
  if (job.rank() == 0) std::printf("outputs %s\n%d ranks\n", hex(hash).c_str(), job.size());
}

}  // namespace

int main(int argc, char** argv) {
  options given;
  const std::string mistake = read_options(argc, argv, &given);
  if (given.help) {
    std::fputs(usage, stdout);
    return std::fflush(stdout) == 0 ? 0 : 2;
  }
  int devices = 0;
  if (mistake.empty() && (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) {
    std::puts("no CUDA device");
    return 0;
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

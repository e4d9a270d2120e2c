/* Routes a batch, groups it by expert, and combines the experts' outputs, on the host and on the
 * device, through the C interface alone; then says whether both gave the same numbers. The experts
 * themselves are stood in for by x -> (expert + 1) * x, so that there is something to combine. */
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adaptive_k/c/adaptive_k.h"

enum { num_tokens = 100, num_experts = 64, top_k = 8, hidden_size = 32 };
enum { num_slots = num_tokens * top_k };

/* What a layer's calls write, in host memory or, by the same layout, on the device. */
typedef struct layer_buffers {
  int32_t ids[num_slots];
  float weights[num_slots];
  int32_t counts[num_tokens];
  int32_t expert_offsets[num_experts + 1];
  int32_t sorted_slots[num_slots];
  int32_t row_of_slot[num_slots];
  float output[num_tokens * hidden_size];
} layer_buffers;

static char message[256];

static void check(int32_t status, const char* what) {
  if (status == ADAPTIVE_K_OK) return;
  fprintf(stderr, "%s: %s: %s\n", what, adaptive_k_status_text(status), message);
  exit(1);
}

static void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

/* Published rule, as an example: 4 experts where the entropy of the router is below 3 nats. */
static adaptive_k_router* make_router(void) {
  adaptive_k_router* router = NULL;
  adaptive_k_gating gating = {0};
  adaptive_k_policy policy = {0};
  adaptive_k_router_params params = {0};
  gating.struct_size = sizeof gating;
  gating.kind = ADAPTIVE_K_SOFTMAX;
  gating.num_experts = num_experts;
  gating.top_k = top_k;
  gating.renormalize = 1;
  policy.struct_size = sizeof policy;
  policy.rule = ADAPTIVE_K_THRESHOLDS;
  policy.signal = ADAPTIVE_K_SOFTMAX_ENTROPY;
  policy.num_k_values = 2;
  policy.k_values[0] = 4;
  policy.k_values[1] = 8;
  policy.thresholds[0] = 3.0f;
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.gating = &gating;
  params.policies = &policy;
  check(adaptive_k_router_create(&params, &router), "router");
  return router;
}

static adaptive_k_route_params route_params(layer_buffers* to, const float* logits) {
  adaptive_k_route_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.logits = logits;
  params.num_tokens = num_tokens;
  params.topk_ids = to->ids;
  params.topk_weights = to->weights;
  params.topk_counts = to->counts;
  return params;
}

static adaptive_k_permute_params permute_params(layer_buffers* to) {
  adaptive_k_permute_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.topk_ids = to->ids;
  params.topk_counts = to->counts;
  params.num_tokens = num_tokens;
  params.top_k = top_k;
  params.num_experts = num_experts;
  params.expert_offsets = to->expert_offsets;
  params.sorted_slots = to->sorted_slots;
  params.row_of_slot = to->row_of_slot;
  return params;
}

static adaptive_k_combine_params combine_params(layer_buffers* to, const float* expert_outputs) {
  adaptive_k_combine_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.expert_outputs = expert_outputs;
  params.output = to->output;
  params.num_tokens = num_tokens;
  params.top_k = top_k;
  params.hidden_size = hidden_size;
  params.row_of_slot = to->row_of_slot;
  params.topk_weights = to->weights;
  return params;
}

/* What the experts would compute, a row for each slot that counts, in order of expert. */
static void run_experts(const layer_buffers* grouped, const float* x, float* rows) {
  int expert, row, c;
  for (expert = 0; expert < num_experts; ++expert)
    for (row = grouped->expert_offsets[expert]; row < grouped->expert_offsets[expert + 1]; ++row)
      for (c = 0; c < hidden_size; ++c)
        rows[row * hidden_size + c] =
            (float)(expert + 1) * x[grouped->sorted_slots[row] / top_k * hidden_size + c];
}

static void* device_copy(const void* from, size_t bytes) {
  void* copy = NULL;
  check_cuda(cudaMalloc(&copy, bytes), "cudaMalloc");
  check_cuda(cudaMemcpy(copy, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  return copy;
}

int main(void) {
  static float logits[num_tokens * num_experts], x[num_tokens * hidden_size];
  static float rows[num_slots * hidden_size];
  static layer_buffers host, from_device;
  static adaptive_k_metrics metrics;
  adaptive_k_router* router = make_router();
  adaptive_k_route_params route = route_params(&host, logits);
  adaptive_k_permute_params permute = permute_params(&host);
  adaptive_k_combine_params combine = combine_params(&host, rows);
  layer_buffers* device;
  float *device_logits, *device_rows;
  void *plans, *workspace, *zeros;
  size_t workspace_bytes = 0;
  uint32_t state = 1;
  int i, devices = 0;

  for (i = 0; i < num_tokens * num_experts; ++i) { /* some rows sure, some not */
    state = state * 1664525u + 1013904223u;
    logits[i] = (float)(state >> 20) / 4096.0f * (float)(i / num_experts % 16);
  }
  for (i = 0; i < num_tokens * hidden_size; ++i) x[i] = (float)(i % 17 - 8) / 8.0f;

  route.metrics = &metrics;
  check(adaptive_k_route_host(router, &route), "route_host");
  check(adaptive_k_permute_host(&permute), "permute_host");
  run_experts(&host, x, rows);
  check(adaptive_k_combine_host(&combine), "combine_host");
  printf("host: %llu of %llu expert calls, %.1f%% saved\n",
         (unsigned long long)metrics.expert_calls, (unsigned long long)metrics.full_expert_calls,
         100.0 - 100.0 * (double)metrics.expert_calls / (double)metrics.full_expert_calls);

  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("no CUDA device: host only\n");
    adaptive_k_router_destroy(router);
    return 0;
  }
  device = device_copy(&from_device, sizeof from_device);
  device_logits = device_copy(logits, sizeof logits);
  device_rows = device_copy(rows, sizeof rows);
  plans = device_copy(adaptive_k_router_plans(router), adaptive_k_router_plan_bytes(router));
  /* The addresses of a struct's members on the device, without reading any. */
  route = route_params(device, device_logits);
  route.plans = plans;
  permute = permute_params(device);
  check(adaptive_k_overlap_supported(&route.overlap_previous), "overlap_supported");
  check(adaptive_k_route_permute(router, &route, &permute, NULL, &workspace_bytes, NULL), "size");
  zeros = calloc(1, workspace_bytes);
  workspace = device_copy(zeros, workspace_bytes);
  check(adaptive_k_route_permute(router, &route, &permute, workspace, &workspace_bytes, NULL),
        "route_permute");
  combine = combine_params(device, device_rows);
  combine.overlap_previous = route.overlap_previous;
  check(adaptive_k_combine(&combine, NULL), "combine");
  check_cuda(cudaMemcpy(&from_device, device, sizeof from_device, cudaMemcpyDeviceToHost), "read");
  if (memcmp(&from_device, &host, sizeof host) != 0) {
    printf("device: other numbers than the host\n");
    return 1;
  }
  printf("device: the host's numbers, bit for bit\n");
  cudaFree(device);
  cudaFree(device_logits);
  cudaFree(device_rows);
  cudaFree(plans);
  cudaFree(workspace);
  free(zeros);
  adaptive_k_router_destroy(router);
  return 0;
}

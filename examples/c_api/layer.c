/* Routes a batch by the calibrated policy of a preset, groups it by expert, and combines the
 * experts' outputs, on the host and on the device, through the C interface alone; then says whether
 * both gave the same numbers. The experts themselves are stood in for by x -> (expert + 1) * x, so
 * that there is something to combine.
 *   c_api_layer [PRESET [POLICY...]] */
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adaptive_k/c/adaptive_k.h"

enum { num_tokens = 100, num_experts = 32, top_k = 8, hidden_size = 32, layer = 1 };
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

static adaptive_k_router* load_router(const char* preset, const char* policy) {
  adaptive_k_router* router = NULL;
  adaptive_k_gating gating = {0};
  adaptive_k_preset_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.preset = preset;
  params.policy = policy;
  check(adaptive_k_router_from_preset(&params, &router), "preset");
  gating.struct_size = sizeof gating;
  check(adaptive_k_router_gating(router, &gating), "gating");
  if (gating.num_experts != num_experts || gating.top_k != top_k || gating.selection_bias) {
    fprintf(stderr, "%s has other experts than this program\n", preset);
    exit(1);
  }
  return router;
}

/* The first call allocates; later ones rewrite what is there, tables included. */
static void upload(const adaptive_k_router* router, adaptive_k_device_plans** plans) {
  adaptive_k_upload_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.router = router;
  check(adaptive_k_upload_plans(&params, plans, NULL), "upload_plans");
}

static adaptive_k_route_params route_params(layer_buffers* to, const float* logits) {
  adaptive_k_route_params params = {0};
  params.struct_size = sizeof params;
  params.message = message;
  params.message_bytes = sizeof message;
  params.logits = logits;
  params.layer = layer;
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

static float logits[num_tokens * num_experts], x[num_tokens * hidden_size];
static float rows[num_slots * hidden_size];

static void run_on_host(const adaptive_k_router* router, layer_buffers* host) {
  static adaptive_k_metrics metrics;
  adaptive_k_route_params route = route_params(host, logits);
  adaptive_k_permute_params permute = permute_params(host);
  adaptive_k_combine_params combine = combine_params(host, rows);
  memset(&metrics, 0, sizeof metrics);
  route.metrics = &metrics;
  check(adaptive_k_route_host(router, &route), "route_host");
  check(adaptive_k_permute_host(&permute), "permute_host");
  run_experts(host, x, rows);
  check(adaptive_k_combine_host(&combine), "combine_host");
  printf("host: %llu of %llu expert calls, %.1f%% saved\n",
         (unsigned long long)metrics.expert_calls, (unsigned long long)metrics.full_expert_calls,
         100.0 - 100.0 * (double)metrics.expert_calls / (double)metrics.full_expert_calls);
}

static void run_on_device(const adaptive_k_router* router, const adaptive_k_device_plans* plans,
                          layer_buffers* host) {
  layer_buffers* device = device_copy(host, sizeof *host); /* the addresses; all is written over */
  float* device_logits = device_copy(logits, sizeof logits);
  float* device_rows = device_copy(rows, sizeof rows);
  adaptive_k_route_params route = route_params(device, device_logits);
  adaptive_k_permute_params permute = permute_params(device);
  adaptive_k_combine_params combine = combine_params(device, device_rows);
  size_t workspace_bytes = 0;
  void *workspace, *zeros;
  route.plans = plans;
  check(adaptive_k_overlap_supported(&route.overlap_previous), "overlap_supported");
  check(adaptive_k_route_permute(router, &route, &permute, NULL, &workspace_bytes, NULL), "size");
  zeros = calloc(1, workspace_bytes);
  workspace = device_copy(zeros, workspace_bytes);
  check_cuda(cudaMemset(device, 0, sizeof *device), "cudaMemset");
  check(adaptive_k_route_permute(router, &route, &permute, workspace, &workspace_bytes, NULL),
        "route_permute");
  combine.overlap_previous = route.overlap_previous;
  check(adaptive_k_combine(&combine, NULL), "combine");
  check_cuda(cudaMemcpy(host, device, sizeof *host, cudaMemcpyDeviceToHost), "read");
  cudaFree(device);
  cudaFree(device_logits);
  cudaFree(device_rows);
  cudaFree(workspace);
  free(zeros);
}

int main(int argc, char** argv) {
  static layer_buffers on_host, on_device;
  static const char* const usual[] = {"", "top_p:0.7", "full"}; /* "": the preset's default */
  const char* preset = argc > 1 ? argv[1] : PRESET;
  const char* const* policies = argc > 2 ? (const char* const*)argv + 2 : usual;
  const int num_policies = argc > 2 ? argc - 2 : 3;
  adaptive_k_device_plans* plans = NULL;
  uint32_t state = 1;
  int i, devices = 0;

  for (i = 0; i < num_tokens * num_experts; ++i) { /* some rows sure, some not */
    state = state * 1664525u + 1013904223u;
    logits[i] = (float)(state >> 20) / 4096.0f * (float)(i / num_experts % 16);
  }
  for (i = 0; i < num_tokens * hidden_size; ++i) x[i] = (float)(i % 17 - 8) / 8.0f;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  if (devices == 0) printf("no CUDA device: host only\n");

  for (i = 0; i < num_policies; ++i) {
    adaptive_k_router* router = load_router(preset, policies[i]);
    run_on_host(router, &on_host);
    if (devices != 0) {
      upload(router, &plans);
      run_on_device(router, plans, &on_device);
      if (memcmp(&on_device, &on_host, sizeof on_host) != 0) {
        printf("device: other numbers than the host\n");
        return 1;
      }
      printf("device: the host's numbers, bit for bit\n");
    }
    adaptive_k_router_destroy(router);
  }
  adaptive_k_device_plans_destroy(plans);
  return 0;
}

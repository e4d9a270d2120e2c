/* The C interface from C99: compiles pedantically, links, and routes. */
#include <stdio.h>
#include <string.h>

#include "adaptive_k/c/adaptive_k.h"

#define EXPECT(condition)                                     \
  do {                                                        \
    if (!(condition)) {                                       \
      printf("line %d: expected %s\n", __LINE__, #condition); \
      return 1;                                               \
    }                                                         \
  } while (0)

int main(void) {
  /* Two rows: one sure of expert 2, one with no idea. */
  const float logits[2][4] = {{0.0f, 0.0f, 9.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
  int32_t ids[2][2], counts[2], rows[2][2], offsets[5], sorted[4];
  float weights[2][2], output[2][1];
  const float expert_outputs[3][1] = {{10.0f}, {20.0f}, {30.0f}};
  char message[128] = "";
  static adaptive_k_metrics metrics; /* zero */
  uint64_t expert_counts[4] = {0, 0, 0, 0};
  adaptive_k_gating gating;
  adaptive_k_policy policy;
  adaptive_k_router_params router_params;
  adaptive_k_route_params route;
  adaptive_k_permute_params permute;
  adaptive_k_combine_params combine;
  adaptive_k_router* router = NULL;

  memset(&gating, 0, sizeof gating);
  gating.struct_size = sizeof gating;
  gating.kind = ADAPTIVE_K_SOFTMAX;
  gating.num_experts = 4;
  gating.top_k = 2;
  gating.renormalize = 1;
  memset(&policy, 0, sizeof policy);
  policy.struct_size = sizeof policy;
  policy.rule = ADAPTIVE_K_THRESHOLDS;
  policy.signal = ADAPTIVE_K_SOFTMAX_ENTROPY;
  policy.num_k_values = 2;
  policy.k_values[0] = 1;
  policy.k_values[1] = 2;
  policy.thresholds[0] = 0.5f;
  memset(&router_params, 0, sizeof router_params);
  router_params.struct_size = sizeof router_params;
  router_params.message = message;
  router_params.message_bytes = sizeof message;
  router_params.gating = &gating;
  router_params.policies = &policy;
  EXPECT(adaptive_k_router_create(&router_params, &router) == ADAPTIVE_K_OK);
  EXPECT(router != NULL);
  EXPECT(adaptive_k_router_num_layers(router) == 0);

  memset(&route, 0, sizeof route);
  route.struct_size = sizeof route;
  route.logits = logits;
  route.num_tokens = 2;
  route.topk_ids = ids;
  route.topk_weights = weights;
  route.topk_counts = counts;
  route.metrics = &metrics;
  route.expert_counts = expert_counts;
  EXPECT(adaptive_k_route_host(router, &route) == ADAPTIVE_K_OK);
  EXPECT(counts[0] == 1 && ids[0][0] == 2 && ids[0][1] == -1 && weights[0][0] == 1.0f);
  EXPECT(counts[1] == 2 && ids[1][0] == 0 && ids[1][1] == 1 && weights[1][1] == 0.5f);
  EXPECT(metrics.tokens == 2 && metrics.expert_calls == 3 && metrics.full_expert_calls == 4);
  EXPECT(metrics.k_histogram[1] == 1 && expert_counts[2] == 1 && metrics.touched_experts[0] == 7);

  memset(&permute, 0, sizeof permute);
  permute.struct_size = sizeof permute;
  permute.topk_ids = ids;
  permute.topk_counts = counts;
  permute.num_tokens = 2;
  permute.top_k = 2;
  permute.num_experts = 4;
  permute.expert_offsets = offsets;
  permute.sorted_slots = sorted;
  permute.row_of_slot = &rows[0][0];
  EXPECT(adaptive_k_permuted_capacity(&permute) == 4);
  EXPECT(adaptive_k_permute_host(&permute) == ADAPTIVE_K_OK);
  EXPECT(offsets[0] == 0 && offsets[1] == 1 && offsets[2] == 2 && offsets[3] == 3 &&
         offsets[4] == 3);
  EXPECT(sorted[0] == 2 && sorted[1] == 3 && sorted[2] == 0 && sorted[3] == 4);
  EXPECT(rows[0][0] == 2 && rows[0][1] == -1 && rows[1][0] == 0 && rows[1][1] == 1);

  memset(&combine, 0, sizeof combine);
  combine.struct_size = sizeof combine;
  combine.expert_outputs = expert_outputs;
  combine.output = output;
  combine.num_tokens = 2;
  combine.top_k = 2;
  combine.hidden_size = 1;
  combine.row_of_slot = &rows[0][0];
  combine.topk_weights = weights;
  EXPECT(adaptive_k_combine_host(&combine) == ADAPTIVE_K_OK);
  EXPECT(output[0][0] == 30.0f && output[1][0] == 15.0f);

  adaptive_k_router_destroy(router);
  adaptive_k_router_destroy(NULL);
  printf("adaptive_k %d from C99\n", (int)adaptive_k_version());
  return 0;
}

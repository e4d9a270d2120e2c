/* Routes two tokens of a model with four experts, two of them for each token. */
#include <stdio.h>

#include "adaptive_k/c/adaptive_k.h"

int main(void) {
  adaptive_k_gating gating = {0};
  gating.struct_size = sizeof gating;
  gating.kind = ADAPTIVE_K_SOFTMAX;
  gating.num_experts = 4;
  gating.top_k = 2;

  adaptive_k_policy policy = {0};
  policy.struct_size = sizeof policy;
  policy.rule = ADAPTIVE_K_FIXED;
  policy.num_k_values = 1;
  policy.k_values[0] = 1;

  char message[256] = "";
  adaptive_k_router_params params = {0};
  params.struct_size = sizeof params;
  params.message_bytes = sizeof message;
  params.message = message;
  params.gating = &gating;
  params.policies = &policy;
  adaptive_k_router* router = NULL;
  if (adaptive_k_router_create(&params, &router) != ADAPTIVE_K_OK) {
    printf("%s\n", message);
    return 1;
  }

  const float logits[8] = {1.0f, 3.0f, 2.0f, 0.0f, 0.5f, 0.25f, 4.0f, 1.0f};
  int32_t ids[4], counts[2];
  float weights[4];
  adaptive_k_route_params call = {0};
  call.struct_size = sizeof call;
  call.message_bytes = sizeof message;
  call.message = message;
  call.logits = logits;
  call.num_tokens = 2;
  call.topk_ids = ids;
  call.topk_weights = weights;
  call.topk_counts = counts;
  if (adaptive_k_route_host(router, &call) != ADAPTIVE_K_OK) {
    printf("%s\n", message);
    return 1;
  }
  printf("k = %d %d, by %s\n", (int)counts[0], (int)counts[1],
         adaptive_k_router_instruction_set(router));
  adaptive_k_router_destroy(router);
  return ids[0] == 1 && ids[2] == 2 ? 0 : 1;
}

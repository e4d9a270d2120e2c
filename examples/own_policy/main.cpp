// Routes by a K policy and a gating that the library does not know.
#define ADAPTIVE_K_VECTORISE \
  1  // types of one's own are compiled here: by vectors, for every machine
#include <adaptive_k/adaptive_k.hpp>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "own_policy.hpp"

namespace {

constexpr int num_experts = 64;
constexpr int num_tokens = 1000;

/// Logits in -4..4, the same on every machine.
std::vector<float> made_up_logits() {
  std::vector<float> logits(std::size_t{num_experts} * num_tokens);
  std::uint32_t state = 1;
  for (float& logit : logits) {
    state = state * 1664525u + 1013904223u;
    logit = static_cast<float>(state >> 8) / 2097152.0f - 4.0f;
  }
  return logits;
}

/// One line about a model under the policy; false where a call is refused or two sets of
/// instructions disagree.
template <class Gating>
bool report(const char* name, const Gating& model, const std::vector<float>& logits) {
  const engine::mass_or_gap policy;
  const adaptive_k::basic_router fast{model, policy};
  adaptive_k::router_options options;
  options.instructions = adaptive_k::instruction_set::scalar;
  const adaptive_k::basic_router reference{model, policy, options};
  const adaptive_k::logits_view<float> view = {logits.data(), num_tokens, num_experts};
  adaptive_k::routing_metrics metrics;
  const adaptive_k::routed_batch a = fast.route(0, view, &metrics);
  const adaptive_k::routed_batch b = reference.route(0, view);
  const bool same = a.topk_ids == b.topk_ids && a.topk_weights == b.topk_weights &&
                    a.topk_counts == b.topk_counts && a.signal == b.signal;
  std::printf("%s: saved %.1f%% of expert calls by %s, %s\n", name, 100 * metrics.expert_savings(),
              name_of(fast.instructions()), same ? "the scalar path's bits" : "OTHER BITS");
  return same;
}

}  // namespace

int main() {
  adaptive_k::gating softmax;
  softmax.num_experts = num_experts;
  softmax.top_k = 8;
  engine::relu_gating relu;
  relu.num_experts = num_experts;
  relu.top_k = 8;
  const std::vector<float> logits = made_up_logits();
  const bool good = report("softmax", softmax, logits) && report("relu", relu, logits);
  return good ? 0 : 1;
}

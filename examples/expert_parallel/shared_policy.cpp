#include "shared_policy.hpp"

#include <cstddef>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "agreement.hpp"
#include "experts.hpp"
#include "placement.hpp"

namespace expert_parallel {

std::string hex(std::uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

namespace {

std::uint64_t hash_of_file(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  return hash_bytes(bytes.data(), bytes.size());
}

}  // namespace

shared_policy::shared_policy(const ranks& job, const std::string& preset, const std::string& policy)
    : preset_(adaptive_k::load_preset(preset)),
      bias_(static_cast<std::size_t>(preset_.model.num_experts), 0.0f) {
  require_agreement(job, "preset",
                    preset_.name + ", content " + hex(hash_of_file(preset_.file.string())));
  policy_ = adaptive_k::parse_policy(job.broadcast(policy, "rank 0's policy"), preset_);
  rescale(1.0);
  full_ = std::make_unique<adaptive_k::router>(preset_.make_router("full"));
  require_agreement(job, "routing", policy_.name + ", which routes to " + hex(probe()));
}

adaptive_k::routing_extras shared_policy::extras() const noexcept {
  adaptive_k::routing_extras extras;
  if (preset_.model.selection_bias) extras.routing_bias = bias_.data();
  return extras;
}

void shared_policy::rescale(double scale) {
  adaptive_k::preset_policy moved = policy_;
  for (adaptive_k::k_policy& layer : moved.layers) layer = adaptive_k::scaled(layer, scale);
  router_ = std::make_unique<adaptive_k::router>(
      adaptive_k::make_router(preset_.model, moved, preset_.num_moe_layers));
}

// What the router makes of made-up logits, every layer: equal where ranks decide alike.
std::uint64_t shared_policy::probe() const {
  const int experts = preset_.model.num_experts;
  std::vector<float> logits(std::size_t{64} * static_cast<std::size_t>(experts));
  make_token(-1, 0, static_cast<int>(logits.size()), logits.data());
  for (float& logit : logits) logit *= 4.0f;
  std::uint64_t hash = hash_bytes("", 0);
  for (int layer = 0; layer < preset_.num_moe_layers; ++layer) {
    const adaptive_k::routed_batch batch = router_->route(
        layer, adaptive_k::logits_view<float>{logits.data(), 64, experts, 0}, nullptr, extras());
    hash = hash_bytes(batch.topk_ids.data(), batch.topk_ids.size() * 4, hash);
    hash = hash_bytes(batch.topk_weights.data(), batch.topk_weights.size() * 4, hash);
  }
  return hash;
}

}  // namespace expert_parallel

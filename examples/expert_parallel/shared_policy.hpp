// The K policy of a job: what each rank has read of the preset is compared, the rest is rank 0's.
#pragma once

#include <adaptive_k/calibration/preset.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ranks.hpp"

namespace expert_parallel {

/// "0123456789abcdef".
std::string hex(std::uint64_t number);

/// Ends the job where ranks have read different presets, or would route otherwise than rank 0.
class shared_policy {
 public:
  /// `policy` counts on rank 0 alone. Throws adaptive_k::preset_error.
  shared_policy(const ranks& job, const std::string& preset, const std::string& policy);

  const adaptive_k::preset& preset() const noexcept { return preset_; }
  const std::string& name() const noexcept { return policy_.name; }
  const adaptive_k::router& router() const noexcept { return *router_; }
  const adaptive_k::router& full() const noexcept { return *full_; }
  /// A selection bias of zeros where the gating has one.
  adaptive_k::routing_extras extras() const noexcept;

  /// As savings_controller::apply moves policies.
  void rescale(double scale);

 private:
  std::uint64_t probe() const;

  adaptive_k::preset preset_;
  std::vector<float> bias_;
  adaptive_k::preset_policy policy_;
  std::unique_ptr<adaptive_k::router> router_, full_;
};

}  // namespace expert_parallel

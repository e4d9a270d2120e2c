// Which policy to measure: asked for, or the model's preset's, or a stated stand-in.
#pragma once

#include <adaptive_k/calibration/preset.hpp>
#include <adaptive_k/host/router.hpp>
#include <optional>
#include <string>
#include <vector>

namespace bench {

inline constexpr const char* stand_in_policy = "top_p:0.9";

struct policy_choice {
  adaptive_k::preset_policy policy;
  std::string origin;  ///< a few words for people: where it comes from
};

/// Share of the tokens of its own domain that are out of it, as its preset says; 0: not known.
inline double expected_outside(const adaptive_k::preset_policy& policy) {
  return policy.measured ? policy.measured->out_of_domain.value_or(0.0) : 0.0;
}

/// The preset whose name or alias is one of `names`, the first that is known. None where there is
/// none, or where it is of another router than `model`; `note` then says so.
std::optional<adaptive_k::preset> find_preset(const std::vector<std::string>& names,
                                              const adaptive_k::gating& model, std::string& note);

/// `spec` as adaptive_k::parse_policy reads it; "" is the preset's default policy, or, where there
/// is no preset, the stand-in.
policy_choice choose_policy(const std::string& spec, const adaptive_k::gating& model,
                            int num_layers, const std::optional<adaptive_k::preset>& known);

/// The file that `spec` names; "" where it names none.
std::string policy_file_of(const std::string& spec);

/// One policy a layer.
std::vector<adaptive_k::k_policy> layer_policies(const adaptive_k::preset_policy& policy,
                                                 int num_layers);

/// Layers "0,2-3" as a mask; "" is all of them. Throws failure.
std::vector<bool> parse_layers(const std::string& text, int num_layers);

}  // namespace bench

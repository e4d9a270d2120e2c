// What a user sets: environment variables, and a JSON file beneath them.
#pragma once

#include <string>

namespace adaptive_k_ggml {

/// ADAPTIVE_K_CONFIG names a JSON file with these as keys; a variable of the environment goes
/// before.
struct settings {
  std::string policy;         ///< ADAPTIVE_K, `adaptive_k`: see README.md; empty: off
  std::string preset_policy;  ///< ADAPTIVE_K_POLICY, `policy`: a policy of the preset that is named
  std::string model_file;     ///< ADAPTIVE_K_MODEL, `model`: the GGUF, where it is not mapped
  std::string log_file;       ///< ADAPTIVE_K_LOG, `log`: a JSON line a batch; "-" is stderr
  int metrics_port = -1;      ///< ADAPTIVE_K_METRICS_PORT, `metrics_port`: 1..65535; -1: none
  bool shadow = false;  ///< ADAPTIVE_K_SHADOW, `shadow`: full K runs, savings are only counted
  bool quiet = false;   ///< ADAPTIVE_K_QUIET, `quiet`: no lines on stderr but errors

  bool is_off() const { return policy.empty() || policy == "off"; }
};

/// Reads them. Throws std::runtime_error that names variable or key, value and what was expected.
settings read_settings();

}  // namespace adaptive_k_ggml

// Which settings of config.json the engine takes.
#pragma once

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <string>

namespace moe_engine {

/// Refuses by name a setting that no model of the type has, or that is implemented for another
/// value alone. Null asks for nothing. Throws std::runtime_error.
void check_settings(const adaptive_k::detail::json_node& root, const std::string& model_type);

}  // namespace moe_engine

// A calibration's result as a calibration file.
#pragma once

#include <adaptive_k/calibration/calibrator.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/adaptive_k/calibrate/setup.hpp"

namespace bench {

inline constexpr const char* calibrated_policy = "calibrated";

/// The model's file, or a new one, with the policy "calibrated" in it as the default one.
/// `points` are the controls' measurements at the same mean K. An unchanged policy keeps its date.
nlohmann::ordered_json preset_json(calibration_setup& setup,
                                   const adaptive_k::calibration_study& study,
                                   const adaptive_k::calibration_result& result,
                                   const std::vector<adaptive_k::frontier_point>& points,
                                   const std::string& command, const std::string& date);

/// A policy file found from a trace: quality unknown. `remark` goes into its notes.
nlohmann::ordered_json trace_policy_json(const adaptive_k::calibration_result& result,
                                         const std::string& trace, const std::string& remark);

/// `json` in the layout of the committed files: an array of numbers on one line.
std::string preset_text(const nlohmann::ordered_json& json);

}  // namespace bench

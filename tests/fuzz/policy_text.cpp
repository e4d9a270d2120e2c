// Policies in one word: what is read fits its model, and reads back from its own text.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/calibration/preset.hpp>

#include "fuzz.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it

gating drawn_gating(fuzz::bytes& from) {
  static constexpr int sizes[][2] = {{8, 2}, {8, 4}, {60, 4}, {64, 6}, {128, 8}, {32, 32}, {1, 1}};
  const auto& size = from.pick(sizes);
  gating model;
  model.num_experts = size[0];
  model.top_k = size[1];
  return model;
}

void require_same(const k_policy& read, const k_policy& again, const std::string& text) {
  bool same = read.rule == again.rule && read.k_min == again.k_min && read.k_max == again.k_max &&
              read.mass_exponent == again.mass_exponent && read.num_k_values == again.num_k_values;
  if (read.rule == k_rule::thresholds) same = same && read.signal == again.signal;
  same = same && read.num_super_experts == again.num_super_experts;
  for (int i = 0; i < read.num_super_experts; ++i)
    same = same && read.super_experts[i] == again.super_experts[i];
  for (int i = 0; i < read.num_k_values; ++i) same = same && read.k_values[i] == again.k_values[i];
  for (int i = 0; i + 1 < read.num_k_values; ++i)  // the last k has no threshold
    same = same && read.thresholds[i] == again.thresholds[i];
  fuzz::require(same, "reads back as itself: " + text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::bytes from(data, size);
  const gating model = drawn_gating(from);
  preset_policy known;
  known.name = "known";
  known.layers = {k_policy::fixed(1), k_policy::full()};
  const std::string spec = from.rest();
  try {
    const preset_policy policy = parse_policy(spec, model, 2, {known});
    fuzz::require(!policy.layers.empty(), "a policy has a layer");
    for (const k_policy& layer : policy.layers) {
      const status fits = validate(layer, model);
      fuzz::require(fits.ok(), std::string("accepted, then: ") + fits.message());
      if (layer.rule == k_rule::distortion) continue;  // its tables are in no text
      const std::string text = to_spec(layer, model.top_k);
      require_same(layer, parse_policy(text, model, 2).layers.at(0), text);
    }
  } catch (const preset_error& error) {
    fuzz::require_message(error.what());
  }
  return 0;
}

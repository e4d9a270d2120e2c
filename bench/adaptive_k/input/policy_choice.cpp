#include "bench/adaptive_k/input/policy_choice.hpp"

#include <fmt/format.h>

#include <adaptive_k/calibration/format/json_reader.hpp>
#include <algorithm>
#include <cstddef>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

/// Null when no preset has that name; a file of that name that is bad still throws.
std::optional<adaptive_k::preset> preset_named(const std::string& name) {
  try {
    return adaptive_k::load_preset(name);
  } catch (const adaptive_k::preset_error& error) {
    if (error.file() == "preset '" + name + "'") return std::nullopt;
    throw;
  }
}

}  // namespace

std::optional<adaptive_k::preset> find_preset(const std::vector<std::string>& names,
                                              const adaptive_k::gating& model, std::string& note) {
  std::string tried;
  for (const std::string& name : names) {
    if (name.empty()) continue;
    auto found = preset_named(name);
    if (!found) {
      tried += (tried.empty() ? "'" : ", '") + name + "'";
      continue;
    }
    if (adaptive_k::detail::is_same_router(found->model, model)) return found;
    note = fmt::format("the preset {} is of another router ({}): not used", found->name,
                       adaptive_k::detail::describe_router(found->model));
    return std::nullopt;
  }
  note = fmt::format("no preset is called {}", tried);
  std::vector<adaptive_k::preset_error> unusable;
  adaptive_k::list_presets(&unusable);
  if (!unusable.empty())
    note += fmt::format("; unusable: {} of the search path's files, such as {}", unusable.size(),
                        unusable.front().what());
  return std::nullopt;
}

policy_choice choose_policy(const std::string& spec, const adaptive_k::gating& model,
                            int num_layers, const std::optional<adaptive_k::preset>& known) {
  policy_choice choice;
  if (spec.empty() && !known) {
    choice.policy = adaptive_k::parse_policy(stand_in_policy, model, num_layers);
    choice.origin = "hand-set, not calibrated";
    return choice;
  }
  // A preset is checked as a whole: what other commands refuse in it is refused here too.
  if (const std::string file = policy_file_of(spec); !file.empty())
    if (adaptive_k::detail::read_json_file(file).find("policies")) adaptive_k::load_preset(file);
  const std::vector<adaptive_k::preset_policy> none;
  choice.policy = adaptive_k::parse_policy(spec.empty() ? known->default_policy : spec, model,
                                           num_layers, known ? known->policies : none);
  choice.origin = choice.policy.provenance;
  if (spec.empty()) choice.origin += fmt::format(", the default of the preset {}", known->name);
  return choice;
}

std::string policy_file_of(const std::string& spec) {
  return adaptive_k::detail::file_of(spec);
}

std::vector<adaptive_k::k_policy> layer_policies(const adaptive_k::preset_policy& policy,
                                                 int num_layers) {
  if (policy.layers.size() == 1)
    return std::vector<adaptive_k::k_policy>(static_cast<std::size_t>(num_layers),
                                             policy.layers.front());
  if (policy.layers.size() != static_cast<std::size_t>(num_layers))
    throw failure(fmt::format("policy '{}': has {} layers, the model {}", policy.name,
                              policy.layers.size(), num_layers));
  return policy.layers;
}

std::vector<bool> parse_layers(const std::string& text, int num_layers) {
  if (text.empty()) return std::vector<bool>(static_cast<std::size_t>(num_layers), true);
  std::vector<bool> mask(static_cast<std::size_t>(num_layers), false);
  const auto layer_of = [&](const std::string& digits) {
    const bool is_number = !digits.empty() && digits.size() <= 5 &&
                           digits.find_first_not_of("0123456789") == std::string::npos;
    const int layer = is_number ? std::stoi(digits) : num_layers;
    if (layer >= num_layers)
      throw failure(fmt::format("--layers: '{}' in '{}', expected layers in 0..{}, such as 0,2-3",
                                digits, text, num_layers - 1));
    return layer;
  };
  for (const std::string& part : adaptive_k::detail::split(text, ',')) {
    const std::size_t dash = part.find('-');
    const int first = layer_of(part.substr(0, dash));
    const int last = dash == std::string::npos ? first : layer_of(part.substr(dash + 1));
    if (last < first)
      throw failure(fmt::format("--layers: '{}' goes backwards, expected first-last", part));
    for (int layer = first; layer <= last; ++layer) mask[static_cast<std::size_t>(layer)] = true;
  }
  return mask;
}

}  // namespace bench

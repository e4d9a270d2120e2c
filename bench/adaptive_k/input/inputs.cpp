#include "bench/adaptive_k/input/inputs.hpp"

#include <utility>

#include "bench/adaptive_k/input/heldout.hpp"
#include "bench/adaptive_k/input/policy_choice.hpp"

namespace bench {

void add_roles(file_roles& roles, const input_options& options) {
  roles.reads("model", options.model.empty() ? reference_folder().string() : options.model);
  roles.reads("data set", options.dataset);
  roles.reads("policy", policy_file_of(options.policy));
}

loaded_model load_model(const std::string& name_or_folder, file_roles& roles,
                        const std::string& updated_by) {
  loaded_model model = load_model(name_or_folder);
  if (model.preset) roles.reads("model's preset", model.preset->file, updated_by);
  return model;
}

model_inputs load_inputs(const input_options& options, file_roles& roles) {
  loaded_model model = load_model(options.model, roles);
  const moe_engine::model_config& config = model.engine.config();
  const int length = window_length(options.context, config.max_positions);
  dataset data = dataset_for(options.dataset, model.folder, model.words, length);
  const window_plan windows = plan_windows(data, length, options.windows);
  return {std::move(model), std::move(data), windows};
}

}  // namespace bench

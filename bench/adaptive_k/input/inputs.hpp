// What most commands read: a model, a text for it and a policy, as options name them.
#pragma once

#include <cstdint>
#include <string>

#include "bench/adaptive_k/input/dataset.hpp"
#include "bench/adaptive_k/input/model.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {

struct input_options {
  std::string model;         ///< "": the project's own
  std::string dataset;       ///< a file or a domain; "": the model's own text
  std::string policy;        ///< "": its preset's
  int context = 0;           ///< 0: the model's own
  std::int64_t windows = 0;  ///< 0: all
};

/// Registers the files that the options name.
void add_roles(file_roles& roles, const input_options& options);

/// Loads the model, and registers its preset, which `updated_by` may write, with `roles`.
loaded_model load_model(const std::string& name_or_folder, file_roles& roles,
                        const std::string& updated_by = {});

struct model_inputs {
  loaded_model model;
  dataset data;
  window_plan windows;
};

/// Throws failure, or std::runtime_error from the engine.
model_inputs load_inputs(const input_options& options, file_roles& roles);

}  // namespace bench

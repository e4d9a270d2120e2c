// The model that the program adaptive-k runs in this package.
#pragma once

#include "nanobind.hpp"

namespace adaptive_k_python {

/// An object of adaptive_k.integrations.evaluation.Engine; not valid before one is set.
nb::object& python_engine();

}  // namespace adaptive_k_python

// adaptive_k._core: the library for Python. The package's own modules are what users call.
#include <adaptive_k/config.hpp>
#include <adaptive_k/host/instruction_set.hpp>
#include <string>

#include "parts.hpp"

namespace {

std::string version() {
  return std::to_string(ADAPTIVE_K_VERSION_MAJOR) + "." + std::to_string(ADAPTIVE_K_VERSION_MINOR) +
         "." + std::to_string(ADAPTIVE_K_VERSION_PATCH);
}

}  // namespace

NB_MODULE(_core, module) {
  using namespace adaptive_k_python;  // NOLINT(google-build-using-namespace)
  // An engine's threads and tables of operations live until the interpreter ends: no leak of ours.
  nb::set_leak_warnings(false);
  module.doc() = "Mixture-of-Experts routing with fewer experts per token: the C++ library.";
  module.attr("__version__") = version();
  module.attr("max_experts") = adaptive_k::max_experts;
  module.attr("max_top_k") = adaptive_k::max_top_k;
  module.def(
      "instructions",
      [] { return std::string(adaptive_k::name_of(adaptive_k::best_instruction_set())); },
      "The widest instruction set that this build and this machine have; bits do not depend on "
      "it.");
  add_gating(module);
  add_policies(module);
  add_presets(module);
  add_metrics(module);
  add_router(module);
  add_control(module);
#if defined(ADAPTIVE_K_PYTHON_OBSERVABILITY)
  add_observability(module);
#endif
#if defined(ADAPTIVE_K_PYTHON_AB_TEST)
  add_ab_test(module);
#endif
}

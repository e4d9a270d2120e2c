// Presets in the C interface: with nlohmann/json where the build has it, else a refusal.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "c_api_arguments.hpp"
#if defined(ADAPTIVE_K_C_PRESETS)
#include "adaptive_k/calibration/preset.hpp"
#endif

namespace {

using namespace adaptive_k;    // NOLINT(google-build-using-namespace): the C interface is its shell
using namespace adaptive_k_c;  // NOLINT(google-build-using-namespace)

/// `text`: what is wrong, however long; a message of a file's names file, key and value.
status load(const adaptive_k_preset_params* given, adaptive_k_router** router, std::string* text) {
  if (router == nullptr) return status::error(status_code::invalid_argument, "`router` is null");
  *router = nullptr;
  adaptive_k_preset_params params;
  status result = read_struct("preset_params", given, &params);
  if (result.ok() && params.preset == nullptr)
    result = status::error(status_code::invalid_argument, "`preset` is null");
  if (result.ok()) result = check_choice("fill", params.fill, ADAPTIVE_K_FILL_FIRST_EXPERT);
  if (result.ok()) result = check_choice("reserved", params.reserved, 0);
  if (!result.ok()) return result;
#if defined(ADAPTIVE_K_C_PRESETS)
  try {
    adaptive_k::router made =
        from_preset(params.preset, params.policy != nullptr ? params.policy : "",
                    {static_cast<fill_id>(params.fill)});
    if (!made.validity().ok()) return made.validity();
    *router = new adaptive_k_router{std::move(made), nullptr};
    return {};
  } catch (const preset_error& error) {
    *text = error.what();
    return status::error(status_code::invalid_argument, "%s", error.what());
  }
#else
  (void)text;
  return status::error(status_code::unsupported,
                       "presets: this library was built without nlohmann/json");
#endif
}

}  // namespace

extern "C" std::int32_t adaptive_k_router_from_preset(const adaptive_k_preset_params* params,
                                                      adaptive_k_router** router) {
  try {
    std::string text;
    const status result = load(params, router, &text);
    return text.empty() ? report(params, result) : report(params, result.code(), text.c_str());
  } catch (const std::bad_alloc&) {
    return ADAPTIVE_K_OUT_OF_MEMORY;
  } catch (const std::exception& error) {  // the file system's
    return report(params, status::error(status_code::invalid_argument, "%s", error.what()));
  }
}

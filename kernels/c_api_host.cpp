// The host's half of the C interface; builds without CUDA.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "c_api_arguments.hpp"

namespace {

using namespace adaptive_k;    // NOLINT(google-build-using-namespace): the C interface is its shell
using namespace adaptive_k_c;  // NOLINT(google-build-using-namespace)

status read_gating(const adaptive_k_gating* given, gating* made) noexcept {
  adaptive_k_gating from;
  status result = read_struct("gating", given, &from);
  if (result.ok()) result = check_choice("kind", from.kind, num_values(gating_kind{}) - 1);
  if (result.ok()) result = check_choice("renormalize", from.renormalize, 1);
  if (result.ok()) result = check_choice("selection_bias", from.selection_bias, 1);
  if (result.ok())
    result = check_choice("group_rank", from.group_rank, num_values(group_score{}) - 1);
  if (!result.ok()) return result;
  made->kind = static_cast<gating_kind>(from.kind);
  made->num_experts = from.num_experts;
  made->top_k = from.top_k;
  made->renormalize = from.renormalize != 0;
  made->selection_bias = from.selection_bias != 0;
  if (from.routed_scaling_factor != 0.0f) made->routed_scaling_factor = from.routed_scaling_factor;
  if (from.n_group != 0) made->n_group = from.n_group;
  if (from.topk_group != 0) made->topk_group = from.topk_group;
  made->group_rank = static_cast<group_score>(from.group_rank);
  if (from.jitter_epsilon != 0.0f) made->jitter_epsilon = from.jitter_epsilon;
  return {};
}

status read_policy(const adaptive_k_policy* given, int top_k, k_policy* made) noexcept {
  adaptive_k_policy from;
  status result = read_struct("policy", given, &from);
  if (result.ok()) result = check_choice("rule", from.rule, num_values(k_rule{}) - 1);
  if (result.ok()) result = check_choice("signal", from.signal, num_values(signal_kind{}) - 1);
  if (result.ok()) result = check_choice("num_k_values", from.num_k_values, max_top_k);
  if (result.ok()) result = check_choice("k_min", from.k_min, 255);
  if (result.ok()) result = check_choice("k_max", from.k_max, 255);
  if (result.ok()) result = check_choice("mass_exponent_given", from.mass_exponent_given, 1);
  if (result.ok())
    result = check_choice("num_super_experts", from.num_super_experts, max_super_experts);
  if (result.ok()) result = check_choice("domain_given", from.domain_given, 1);
  if (result.ok())
    result = check_aligned({{"coefficients", from.coefficients, alignof(float)},
                            {"first_expert", from.first_expert, alignof(float)},
                            {"next_expert", from.next_expert, alignof(float)},
                            {"head", from.head, alignof(float)}});
  if (result.ok()) result = check_choice("reserved", from.reserved, 0);
  if (!result.ok()) return result;
  made->rule = static_cast<k_rule>(from.rule);
  made->signal = static_cast<signal_kind>(from.signal);
  made->num_k_values = static_cast<std::uint8_t>(from.num_k_values);
  for (int i = 0; i < max_top_k; ++i) {
    made->k_values[i] = from.k_values[i];
    made->thresholds[i] = from.thresholds[i];
  }
  made->k_min = static_cast<std::uint8_t>(from.k_min == 0 ? 1 : from.k_min);
  made->k_max = static_cast<std::uint8_t>(from.k_max == 0 ? top_k : from.k_max);
  if (from.mass_exponent_given != 0) made->mass_exponent = from.mass_exponent;
  if (from.sensitivity != 0.0f) made->distortion.sensitivity = from.sensitivity;
  made->distortion.lambda = from.lambda;
  made->distortion.coefficients = from.coefficients;
  made->distortion.first_expert = from.first_expert;
  made->distortion.next_expert = from.next_expert;
  made->distortion.head = from.head;
  made->distortion.hidden_size = from.hidden_size;
  made->num_super_experts = static_cast<std::uint8_t>(from.num_super_experts);
  for (int i = 0; i < from.num_super_experts; ++i) made->super_experts[i] = from.super_experts[i];
  if (from.domain_given != 0)
    made->domain = {true, from.domain_signal_least, from.domain_signal_most,
                    from.domain_first_share_least, from.domain_first_share_most};
  return {};
}

/// Copies what a distortion policy points to, and points it there. Moved vectors keep their place.
void keep_tables(k_policy& policy, const gating& model, std::vector<std::vector<float>>* kept) {
  if (policy.rule != k_rule::distortion) return;
  const auto rows = static_cast<std::size_t>(model.top_k - 1);
  const auto keep = [&](const float*& table, int columns) {
    if (table == nullptr) return;
    kept->emplace_back(table, table + rows * static_cast<std::size_t>(columns));
    if (rows != 0) table = kept->back().data();
  };
  keep(policy.distortion.coefficients, distortion_ref::num_features);
  keep(policy.distortion.first_expert, model.num_experts);
  keep(policy.distortion.next_expert, model.num_experts);
  if (policy.distortion.hidden_size > 0)
    keep(policy.distortion.head, policy.distortion.hidden_size);
}

status create(const adaptive_k_router_params* given, adaptive_k_router** router) {
  if (router == nullptr) return status::error(status_code::invalid_argument, "`router` is null");
  *router = nullptr;
  adaptive_k_router_params params;
  gating model;
  status result = read_struct("router_params", given, &params);
  if (result.ok()) result = read_gating(params.gating, &model);
  if (result.ok()) result = check_choice("fill", params.fill, ADAPTIVE_K_FILL_FIRST_EXPERT);
  if (result.ok()) result = validate(model);
  if (result.ok() && params.policies == nullptr)
    result = status::error(status_code::invalid_argument, "`policies` is null");
  if (result.ok() && params.num_layers < 0)
    result = status::error(status_code::invalid_argument, "`num_layers` is %d, expected 0 or more",
                           params.num_layers);
  if (!result.ok()) return result;
  const char* at = reinterpret_cast<const char*>(params.policies);
  std::size_t stride = 0;  // the caller's, not this library's
  auto tables = std::make_shared<std::vector<std::vector<float>>>();
  std::vector<k_policy> policies(
      static_cast<std::size_t>(params.num_layers == 0 ? 1 : params.num_layers));
  for (k_policy& policy : policies) {
    const auto* from = reinterpret_cast<const adaptive_k_policy*>(at);
    result = read_policy(from, model.top_k, &policy);
    if (result.ok() && stride != 0 && from->struct_size != stride)
      result = status::error(status_code::invalid_argument,
                             "`struct_size` is %u, expected %zu as in the policies before it",
                             from->struct_size, stride);
    if (!result.ok() && params.num_layers != 0)
      return result.within("policies[%d]: ", static_cast<int>(&policy - policies.data()));
    if (!result.ok()) return result;
    stride = from->struct_size;
    keep_tables(policy, model, tables.get());
    at += stride;
  }
  const router_options options = {static_cast<fill_id>(params.fill)};
  adaptive_k::router made = params.num_layers == 0
                                ? adaptive_k::router(model, policies[0], options)
                                : adaptive_k::router(model, std::move(policies), options);
  if (!made.validity().ok()) return made.validity();
  *router = new adaptive_k_router{std::move(made), std::move(tables)};
  return {};
}

}  // namespace

extern "C" {

const char* adaptive_k_status_text(std::int32_t status) {
  switch (status) {
    case ADAPTIVE_K_OK:
      return "ok";
    case ADAPTIVE_K_INVALID_ARGUMENT:
      return "an argument is outside its range";
    case ADAPTIVE_K_SHAPE_MISMATCH:
      return "sizes do not fit one another";
    case ADAPTIVE_K_UNSUPPORTED:
      return "not supported by this build";
    case ADAPTIVE_K_CUDA_ERROR:
      return "the CUDA runtime reported an error";
    case ADAPTIVE_K_OUT_OF_MEMORY:
      return "out of memory";
    default:
      return "not a status of adaptive_k";
  }
}

std::int32_t adaptive_k_version(void) {
  return 10000 * ADAPTIVE_K_VERSION_MAJOR + 100 * ADAPTIVE_K_VERSION_MINOR +
         ADAPTIVE_K_VERSION_PATCH;
}

std::int32_t adaptive_k_router_create(const adaptive_k_router_params* params,
                                      adaptive_k_router** router) {
  try {
    return report(params, create(params, router));
  } catch (const std::exception&) {  // only memory can be lacking
    return ADAPTIVE_K_OUT_OF_MEMORY;
  }
}

void adaptive_k_router_destroy(adaptive_k_router* router) {
  delete router;
}

const char* adaptive_k_router_instruction_set(const adaptive_k_router* router) {
  return router == nullptr ? nullptr : name_of(router->impl.instructions());
}

std::int32_t adaptive_k_router_gating(const adaptive_k_router* router, adaptive_k_gating* gating) {
  adaptive_k_gating made;
  status result = read_struct("gating", gating, &made);
  if (result.ok() && router == nullptr)
    result = status::error(status_code::invalid_argument, "`router` is null");
  if (!result.ok()) return static_cast<std::int32_t>(result.code());
  const adaptive_k::gating& model = router->impl.model();
  made.kind = static_cast<std::int32_t>(model.kind);
  made.num_experts = model.num_experts;
  made.top_k = model.top_k;
  made.renormalize = model.renormalize ? 1 : 0;
  made.selection_bias = model.selection_bias ? 1 : 0;
  made.routed_scaling_factor = model.routed_scaling_factor;
  made.n_group = model.n_group;
  made.topk_group = model.topk_group;
  made.group_rank = static_cast<std::int32_t>(model.group_rank);
  made.jitter_epsilon = model.jitter_epsilon;
  std::memcpy(gating, &made, made.struct_size);  // as the caller was compiled
  return ADAPTIVE_K_OK;
}

std::int32_t adaptive_k_router_num_layers(const adaptive_k_router* router) {
  return router == nullptr ? -1 : router->impl.num_layers();
}

const float* adaptive_k_router_head(const adaptive_k_router* router, std::int32_t layer,
                                    std::int32_t* hidden_size) {
  if (hidden_size != nullptr) *hidden_size = 0;
  if (router == nullptr || layer < 0) return nullptr;
  const int num_layers = router->impl.num_layers();
  if ((num_layers != 0 && layer >= num_layers) || !router->impl.reads_head(layer)) return nullptr;
  const distortion_ref& distortion = router->impl.policy(layer).distortion;
  if (hidden_size != nullptr) *hidden_size = distortion.hidden_size;
  return distortion.head;
}

std::size_t adaptive_k_metrics_bytes(void) {
  return sizeof(adaptive_k_metrics_v0_1);  // the largest there has been
}

std::int32_t adaptive_k_route_host(const adaptive_k_router* router,
                                   const adaptive_k_route_params* params) {
  adaptive_k_route_params call;
  status result = read_struct("route_params", params, &call);
  if (result.ok() && router == nullptr)
    result = status::error(status_code::invalid_argument, "`router` is null");
  if (result.ok()) result = check_fields(call);
  if (!result.ok()) return report(params, result);
  auto* metrics = static_cast<routing_metrics*>(call.metrics);
  auto* old_metrics = static_cast<adaptive_k_metrics_v0_1*>(call.metrics);
  routing_metrics counted;
  if (has_old_metrics(call)) {
    copy_metrics(*old_metrics, &counted);
    metrics = &counted;
    call.expert_counts = old_metrics->expert_counts;
  }
  result = with_route_types(
      call, router->impl.model().num_experts,
      [&](const auto& logits, const auto& output, const auto& replay) {
        if (replay.topk_ids != nullptr)
          return router->impl.replay(call.layer, logits, replay, output, metrics, extras_of(call));
        return router->impl.route(call.layer, logits, output, metrics, extras_of(call));
      });
  if (result.ok() && has_old_metrics(call)) copy_metrics(counted, old_metrics);
  return report(params, result);
}

std::int64_t adaptive_k_permuted_capacity(const adaptive_k_permute_params* params) {
  adaptive_k_permute_params call;
  status result = read_struct("permute_params", params, &call);
  if (result.ok()) result = validate(shape_of(call));
  report(params, result);
  return result.ok() ? permuted_capacity(shape_of(call)) : -1;
}

std::int32_t adaptive_k_permute_host(const adaptive_k_permute_params* params) {
  adaptive_k_permute_params call;
  status result = read_struct("permute_params", params, &call);
  if (result.ok()) result = check_fields(call);
  if (result.ok())
    result = with_id_type(call.ids_type, [&](auto id) {
      const permutation_input<decltype(id)> input = {
          static_cast<const decltype(id)*>(call.topk_ids), call.topk_counts, call.expert_map};
      return permute(shape_of(call), input, output_of(call));
    });
  return report(params, result);
}

std::int32_t adaptive_k_combine_host(const adaptive_k_combine_params* params) {
  adaptive_k_combine_params call;
  status result = read_struct("combine_params", params, &call);
  if (result.ok()) result = check_fields(call);
  if (result.ok())
    result = with_combine_types(call, [](const auto& shape, const auto& input, auto* output) {
      return combine_experts(shape, input, output);
    });
  return report(params, result);
}

}  // extern "C"

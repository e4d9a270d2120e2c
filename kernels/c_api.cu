// The device's half of the C interface. The kernels themselves are in the other files here.
#if !defined(ADAPTIVE_K_LINKED_KERNELS)
#define ADAPTIVE_K_LINKED_KERNELS
#endif

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>

#include "adaptive_k/cuda/combine_launch.cuh"
#include "adaptive_k/cuda/device_plans.cuh"
#include "adaptive_k/cuda/launch.cuh"
#include "adaptive_k/cuda/permute_launch.cuh"
#include "c_api_arguments.hpp"

struct adaptive_k_device_plans {
  adaptive_k::cuda::device_plans impl;
};

namespace {

using namespace adaptive_k;    // NOLINT(google-build-using-namespace): the C interface is its shell
using namespace adaptive_k_c;  // NOLINT(google-build-using-namespace)

namespace device = adaptive_k::cuda;

static_assert(ADAPTIVE_K_UINT16 == static_cast<int>(device::id_type::uint16), "");
static_assert(ADAPTIVE_K_BFLOAT16 == static_cast<int>(device::float_type::bfloat16), "");

cudaStream_t stream_of(void* stream) noexcept {
  return static_cast<cudaStream_t>(stream);
}

status read_route(const adaptive_k_router* router, const adaptive_k_route_params* given,
                  bool needs_plans, adaptive_k_route_params* call) noexcept {
  status result = read_struct("route_params", given, call);
  if (result.ok() && router == nullptr)
    result = status::error(status_code::invalid_argument, "`router` is null");
  if (result.ok() && needs_plans && call->plans == nullptr)
    result = status::error(status_code::invalid_argument,
                           "`plans` is null, expected what adaptive_k_upload_plans made");
  if (result.ok()) result = check_fields(*call);
  return result;
}

/// A permutation's own shape is that of the routing call, where it is given.
status check_same_shape(const adaptive_k_permute_params& order,
                        const adaptive_k_route_params& route, const gating& model) noexcept {
  const struct {
    const char* name;
    std::int64_t given, expected;
  } fields[] = {{"num_tokens", order.num_tokens, route.num_tokens},
                {"top_k", order.top_k, model.top_k},
                {"num_experts", order.num_experts, model.num_experts}};
  for (const auto& field : fields)
    if (field.given != 0 && field.given != field.expected)
      return status::error(status_code::shape_mismatch,
                           "permute_params: `%s` is %lld, expected 0 or the routing call's, %lld",
                           field.name, static_cast<long long>(field.given),
                           static_cast<long long>(field.expected));
  return {};
}

device::device_router device_side(const adaptive_k_router& router,
                                  const adaptive_k_route_params& call) noexcept {
  const device::plans_ref plans =
      call.plans != nullptr ? call.plans->impl.ref() : device::plans_ref{};
  return device::device_router(router.impl.model(), plans, router.impl.options().fill,
                               call.overlap_previous != 0);
}

status upload(const adaptive_k_upload_params* params, adaptive_k_device_plans** plans,
              cudaStream_t stream) {
  adaptive_k_upload_params call;
  status result = read_struct("upload_params", params, &call);
  if (result.ok() && call.router == nullptr)
    result = status::error(status_code::invalid_argument, "`router` is null");
  if (result.ok() && plans == nullptr)
    result = status::error(status_code::invalid_argument, "`plans` is null");
  if (result.ok()) result = check_choice("one_layer", call.one_layer, 1);
  if (!result.ok()) return result;
  std::unique_ptr<adaptive_k_device_plans> made;
  if (*plans == nullptr) made = std::make_unique<adaptive_k_device_plans>();
  device::device_plans& target = made != nullptr ? made->impl : (*plans)->impl;
  result = call.one_layer != 0 ? target.upload(call.router->impl, call.layer, stream)
                               : target.upload(call.router->impl, stream);
  if (result.ok() && made != nullptr) *plans = made.release();
  return result;
}

}  // namespace

extern "C" {

std::int32_t adaptive_k_upload_plans(const adaptive_k_upload_params* params,
                                     adaptive_k_device_plans** plans, void* stream) {
  try {
    return report(params, upload(params, plans, stream_of(stream)));
  } catch (const std::exception&) {  // only memory can be lacking
    return ADAPTIVE_K_OUT_OF_MEMORY;
  }
}

void adaptive_k_device_plans_destroy(adaptive_k_device_plans* plans) {
  delete plans;
}

std::int32_t adaptive_k_route(const adaptive_k_router* router,
                              const adaptive_k_route_params* params, void* stream) {
  adaptive_k_route_params call;
  status result = read_route(router, params, true, &call);
  if (result.ok())
    result =
        with_route_types(call, router->impl.model().num_experts,
                         [&](const auto& logits, const auto& output, const auto& replay) {
                           auto* metrics = static_cast<device::device_metrics*>(call.metrics);
                           const device::device_router on_device = device_side(*router, call);
                           if (replay.topk_ids != nullptr)
                             return on_device.replay(call.layer, logits, replay, output, metrics,
                                                     extras_of(call), stream_of(stream));
                           return on_device.route(call.layer, logits, output, metrics,
                                                  extras_of(call), stream_of(stream));
                         });
  return report(params, result);
}

std::size_t adaptive_k_device_metrics_bytes(void) {
  // The experts of version 0.1's metrics stand behind them.
  return sizeof(device::device_metrics) + max_experts * sizeof(std::uint64_t);
}

std::int32_t adaptive_k_metrics_from_device(const void* copied, adaptive_k_metrics* metrics,
                                            std::size_t metrics_bytes) {
  const bool old = metrics_bytes == sizeof(adaptive_k_metrics_v0_1);
  if (copied == nullptr || metrics == nullptr || !(old || metrics_bytes == sizeof *metrics))
    return ADAPTIVE_K_INVALID_ARGUMENT;
  device::device_metrics counted;  // by bytes: the copy may lie anywhere
  std::memcpy(&counted, copied, sizeof counted);
  const auto converted = device::to_metrics<routing_metrics>(counted);
  if (old) {
    auto* made = reinterpret_cast<adaptive_k_metrics_v0_1*>(metrics);
    copy_metrics(converted, made);
    std::memcpy(made->expert_counts, static_cast<const char*>(copied) + sizeof counted,
                sizeof made->expert_counts);
  } else {
    std::memcpy(metrics, static_cast<const void*>(&converted), sizeof converted);
  }
  return ADAPTIVE_K_OK;
}

std::int32_t adaptive_k_permute(const adaptive_k_permute_params* params, void* workspace,
                                std::size_t* workspace_bytes, void* stream) {
  adaptive_k_permute_params call;
  status result = read_struct("permute_params", params, &call);
  if (result.ok()) result = check_fields(call);
  if (result.ok() && workspace_bytes == nullptr)
    result = status::error(status_code::invalid_argument, "`workspace_bytes` is null");
  if (result.ok())
    result = with_id_type(call.ids_type, [&](auto id) {
      const permutation_input<decltype(id)> input = {
          static_cast<const decltype(id)*>(call.topk_ids), call.topk_counts, call.expert_map};
      return device::permute(shape_of(call), input, output_of(call), workspace, workspace_bytes,
                             call.overlap_previous != 0, stream_of(stream));
    });
  return report(params, result);
}

std::int32_t adaptive_k_route_permute(const adaptive_k_router* router,
                                      const adaptive_k_route_params* route,
                                      const adaptive_k_permute_params* permute, void* workspace,
                                      std::size_t* workspace_bytes, void* stream) {
  adaptive_k_route_params call;
  adaptive_k_permute_params order;
  status result = read_route(router, route, workspace != nullptr, &call);
  if (result.ok()) result = read_struct("permute_params", permute, &order);
  if (result.ok()) result = check_order(order);
  if (result.ok() && workspace_bytes == nullptr)
    result = status::error(status_code::invalid_argument, "`workspace_bytes` is null");
  if (result.ok()) result = check_same_shape(order, call, router->impl.model());
  if (result.ok())
    result = with_route_types(
        call, router->impl.model().num_experts,
        [&](const auto& logits, const auto& output, const auto& replay) {
          const device::expert_major by = {output_of(order), shape_of(order).block_size,
                                           order.num_local_experts, order.expert_map};
          return device_side(*router, call)
              .route_permute(call.layer, logits, replay, output, by,
                             static_cast<device::device_metrics*>(call.metrics), extras_of(call),
                             workspace, workspace_bytes, stream_of(stream));
        });
  report(permute, result);
  return report(route, result);
}

std::int32_t adaptive_k_combine(const adaptive_k_combine_params* params, void* stream) {
  adaptive_k_combine_params call;
  status result = read_struct("combine_params", params, &call);
  if (result.ok()) result = check_fields(call);
  if (result.ok())
    result = with_combine_types(call, [&](const auto& shape, const auto& input, auto* output) {
      return device::combine_experts(shape, input, output, call.overlap_previous != 0,
                                     stream_of(stream));
    });
  return report(params, result);
}

std::int32_t adaptive_k_overlap_supported(std::int32_t* supported) {
  if (supported == nullptr) return ADAPTIVE_K_INVALID_ARGUMENT;
  bool answer = false;
  const status result = device::overlap_supported(&answer);
  if (result.ok()) *supported = answer ? 1 : 0;
  return static_cast<std::int32_t>(result.code());
}

}  // extern "C"

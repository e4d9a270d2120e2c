// Host side of the routing kernels: checks, the choice of a tier, the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "adaptive_k/core/check_call.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/score.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/device_metrics.cuh"
#include "adaptive_k/cuda/device_plans.cuh"
#include "adaptive_k/cuda/generic_gating_kernel.cuh"
#include "adaptive_k/cuda/permute_launch.cuh"
#include "adaptive_k/cuda/softmax_topk_kernel.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/cuda/tuning.cuh"
#include "adaptive_k/cuda/warp_per_token_kernel.cuh"
#include "adaptive_k/status.hpp"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// Whether the model is served by the softmax_topk kernels: softmax ranked by logit alone.
template <class Gating = gating>
bool is_softmax_topk(const gating& g) noexcept {
  const bool softmax = detail::with_score<Gating>(
      g.kind, [](auto score) { return std::is_same_v<decltype(score), detail::softmax_score>; });
  return softmax && !g.selection_bias && g.n_group == 1 &&
         tier_for(softmax_topk_tiers{}, g.num_experts, g.top_k) >= 0;
}

/// The tiers of the generic_gating kernels for a score.
template <class Score>
using tiers_of =
    std::conditional_t<detail::is_masked<Score>, sparsemixer_tiers, generic_gating_tiers>;

/// Ok where a kernel serves the gating, else why not.
template <class Gating>
status supported(const Gating& g) noexcept {
  const status fits = detail::check_gating(g);
  if (!fits.ok()) return fits;
  const int tier = detail::with_score<Gating>(g.kind, [&](auto score) {
    return tier_for(tiers_of<decltype(score)>{}, g.num_experts, g.top_k);
  });
  if (tier >= 0 || is_softmax_topk<Gating>(g)) return {};
  return status::error(status_code::unsupported, "no kernel for num_experts = %d, top_k = %d",
                       g.num_experts, g.top_k);
}

namespace launch_detail {

inline status check_blocks(std::int64_t blocks, std::int64_t num_tokens) noexcept {
  if (blocks <= 0x7FFFFFFF) return {};
  return status::error(status_code::unsupported, "`num_tokens` is %lld, too many for one launch",
                       static_cast<long long>(num_tokens));
}

/// Shared memory that a kernel may have on every architecture, what a launch gives it unasked, and
/// the most that the two families of kernels take for routing itself.
inline constexpr int shared_bytes_of_block = 64 * 1024;
inline constexpr int shared_bytes_unasked = 48 * 1024;
inline constexpr int softmax_topk_shared_bytes = 30 * 1024;
inline constexpr int generic_gating_shared_bytes = 6 * 1024;
inline constexpr int warp_per_token_shared_bytes = 12 * 1024;

/// Whether a kernel that routes can permute for `num_local` experts in the same launch.
inline bool permutes_itself(bool softmax_topk, int num_local) noexcept {
  return permute_detail::chunk_memory::bytes(num_local) <=
         shared_bytes_of_block -
             (softmax_topk ? softmax_topk_shared_bytes : generic_gating_shared_bytes);
}

/// `own_bytes`: shared memory of the kernel for routing. The limit asked for is the same for every
/// call, so that threads that launch the same kernel do not take it back from one another.
inline status launch_blocks(void (*kernel)(route_params), int own_bytes, std::int64_t blocks,
                            const route_params& params, cudaStream_t stream,
                            int threads = threads_per_block) noexcept {
  const permute_params& permutation = params.permutation;
  const bool permutes = permutation.topk_ids != nullptr && permutation.num_parts == 1;
  const int shared_bytes =
      permutes ? permute_detail::chunk_memory::bytes(permutation.shape.num_local_experts) : 0;
  if (shared_bytes > shared_bytes_unasked - own_bytes) {
    const status allowed = to_status(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        shared_bytes_of_block - own_bytes));
    if (!allowed.ok()) return allowed;
  }
  return to_status(cuda::launch(kernel,
                                {static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                                 static_cast<std::size_t>(shared_bytes), stream, params.overlaps},
                                params));
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

template <class Logit, class Plan>
struct softmax_topk_family {
  template <class Tier>
  static status launch(route_params params, cudaStream_t stream) noexcept {
    using tile = device_tile<Tier::lanes, Tier::row_width, Logit>;
    const auto is_aligned = [](const void* data) {
      return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
    };
    params.whole_rows = is_plain(params) && params.model.top_k == Tier::max_top_k &&
                        is_aligned(params.topk_ids) && is_aligned(params.topk_weights);
    params.rounds = rounds_for(Tier::lanes, params.num_tokens, params.multiprocessors);
    // A warp's rounds start at multiples of 32 / lanes rows, so the rows' start aligns them all.
    const std::int64_t round_bytes =
        32 / Tier::lanes * params.row_stride * static_cast<std::int64_t>(sizeof(Logit));
    const bool aligned = is_aligned(params.logits) && round_bytes % 16 == 0;
    const bool whole_sectors =
        params.row_stride * static_cast<std::int64_t>(sizeof(Logit)) % 32 == 0;
    const bool loads_side_by_side =
        params.load_width >= tile::chunk && (Tier::lanes > 1 ? whole_sectors : tile::chunks == 1);
    params.stages_rows = aligned && params.row_stride == params.model.num_experts &&
                         params.num_tokens > 1 && !loads_side_by_side;
    const std::int64_t warps = divide_up(params.num_tokens, 32 / Tier::lanes * params.rounds);
    const std::int64_t blocks = divide_up(warps, threads_per_block / 32);
    const status fits = check_blocks(blocks, params.num_tokens);
    if (!fits.ok()) return fits;
    return launch_blocks(softmax_topk_route_kernel<Tier, Logit, Plan>, softmax_topk_shared_bytes,
                         blocks, params, stream);
  }
};

/// Whether a call is one for the warp_per_token kernels: few tokens, whose logits 32 bits count.
template <class Logit, class... Tiers>
bool takes_warp_per_token(tier_list<Tiers...> tiers, const route_params& params) noexcept {
  const int limit =
      tokens_for_warps(tiers, params.model.num_experts, params.model.top_k, sizeof(Logit));
  return params.num_tokens <= static_cast<std::int64_t>(limit) * params.multiprocessors &&
         params.row_stride <= 0x7FFFFFFF / params.num_tokens;
}

/// The score of a gating's type, or what stands for that of its kind.
template <class Gating, class = void>
struct warp_score_of {
  using type = score_of_kind;
};
template <class Gating>
struct warp_score_of<Gating, std::void_t<typename Gating::score>> {
  using type = typename Gating::score;
};
template <class Gating>
using warp_score = typename warp_score_of<Gating>::type;

template <class Score, class Logit, class Plan>
struct warp_per_token_family {
  template <class Tier>
  static status launch(route_params params, cudaStream_t stream) noexcept {
    params.plain = is_plain(params);
    // A launch that permutes ends with a whole block.
    const bool permutes = params.permutation.topk_ids != nullptr;
    const int most = threads_per_block / 32;
    const int warps =
        permutes || params.num_tokens > most ? most : static_cast<int>(params.num_tokens);
    return launch_blocks(warp_per_token_route_kernel<Tier, Score, Logit, Plan>,
                         warp_per_token_shared_bytes, divide_up(params.num_tokens, warps), params,
                         stream, 32 * warps);
  }
};

template <class Score, class Logit, class Plan>
struct generic_gating_family {
  template <class Tier>
  static status launch(const route_params& params, cudaStream_t stream) noexcept {
    const std::int64_t blocks = divide_up(params.num_tokens * Tier::lanes, threads_per_block);
    const status fits = check_blocks(blocks, params.num_tokens);
    if (!fits.ok()) return fits;
    return launch_blocks(generic_gating_route_kernel<Tier, Score, Logit, Plan>,
                         generic_gating_shared_bytes, blocks, params, stream);
  }
};

template <class Family, class... Tiers>
status launch_first_fit(tier_list<Tiers...>, const route_params& params,
                        cudaStream_t stream) noexcept {
  status result =
      status::error(status_code::unsupported, "no kernel for num_experts = %d, top_k = %d",
                    params.model.num_experts, params.model.top_k);
  const int wanted = tier_for(tier_list<Tiers...>{}, params.model.num_experts, params.model.top_k);
  int index = 0;
  (void)((index++ == wanted ? (result = Family::template launch<Tiers>(params, stream), true)
                            : false) ||
         ...);
  return result;
}

}  // namespace launch_detail

/// Softmax ranked by logit alone. This and launch_generic_gating are instantiated in kernels/ for
/// each logit type; an engine that compiles its own kernels gets them from here.
template <class Logit, class Plan>
status launch_softmax_topk(const route_params& params, cudaStream_t stream) noexcept {
  if (launch_detail::takes_warp_per_token<Logit>(warp_softmax_tiers{}, params))
    return launch_detail::launch_first_fit<
        launch_detail::warp_per_token_family<detail::softmax_score, Logit, Plan>>(
        warp_softmax_tiers{}, params, stream);
  return launch_detail::launch_first_fit<launch_detail::softmax_topk_family<Logit, Plan>>(
      softmax_topk_tiers{}, params, stream);
}

/// Any gating: `kind` says which, unless Gating names its score.
template <class Logit, class Plan, class Gating>
status launch_generic_gating(const route_params& params, cudaStream_t stream) noexcept {
  if (params.replay_ids == nullptr && params.model.kind != gating_kind::sparsemixer &&
      launch_detail::takes_warp_per_token<Logit>(warp_gating_tiers{}, params))
    return launch_detail::launch_first_fit<
        launch_detail::warp_per_token_family<launch_detail::warp_score<Gating>, Logit, Plan>>(
        warp_gating_tiers{}, params, stream);
  return detail::with_score<Gating>(params.model.kind, [&](auto score) {
    using score_type = decltype(score);
    return launch_detail::launch_first_fit<
        launch_detail::generic_gating_family<score_type, Logit, Plan>>(tiers_of<score_type>{},
                                                                       params, stream);
  });
}

#if defined(ADAPTIVE_K_LINKED_KERNELS)
#define ADAPTIVE_K_KERNELS_FOR(Logit)                                                       \
  extern template status launch_softmax_topk<Logit, detail::k_plan>(const route_params&,    \
                                                                    cudaStream_t) noexcept; \
  extern template status launch_generic_gating<Logit, detail::k_plan, gating>(              \
      const route_params&, cudaStream_t) noexcept;
ADAPTIVE_K_KERNELS_FOR(float)
ADAPTIVE_K_KERNELS_FOR(float16)
ADAPTIVE_K_KERNELS_FOR(bfloat16)
#undef ADAPTIVE_K_KERNELS_FOR
#endif

/// Whether a gating's score can be softmax: else no kernel for it is compiled.
template <class Gating>
inline constexpr bool may_be_softmax =
    std::is_same_v<launch_detail::warp_score<Gating>, score_of_kind> ||
    std::is_same_v<launch_detail::warp_score<Gating>, detail::softmax_score>;

/// Launches the kernel that serves the call, by its gating and shape.
template <class Logit, class Plan, class Gating>
status launch_route(const route_params& params, cudaStream_t stream) noexcept {
  if constexpr (may_be_softmax<Gating>)
    if (is_softmax_topk<Gating>(params.model) && params.replay_ids == nullptr)
      return launch_softmax_topk<Logit, Plan>(params, stream);
  return launch_generic_gating<Logit, Plan, Gating>(params, stream);
}

/// Elements a load may take: a power of two that address, stride and length all allow.
template <class Logit>
int load_width(const Logit* data, std::int64_t row_stride, int num_experts) noexcept {
  int width = 16 / static_cast<int>(sizeof(Logit));
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  while (width > 1 && (address % (static_cast<std::size_t>(width) * sizeof(Logit)) != 0 ||
                       row_stride % width != 0 || num_experts % width != 0))
    width /= 2;
  return width;
}

/// The router on the device: the same decision as host/router.hpp, bit for bit, with every pointer
/// in device memory. Trivially copyable; owns nothing. Kernels of other plans and gatings than the
/// built-in ones are compiled where this is used.
template <class Plan, class Gating = gating>
class basic_device_router {
 public:
  /// `plans`: of a device_plans with a router of this gating, which must outlive the launches; it
  /// may be rewritten between them, also under a captured graph.
  /// `overlaps`: launches may overlap the kernel before them (see overlap_supported).
  basic_device_router(const Gating& model, basic_plans_ref<Plan> plans,
                      fill_id fill = fill_id::minus_one, bool overlaps = false) noexcept
      : validity_(detail::check_gating(model)),
        model_(model),
        fill_(fill),
        overlaps_(overlaps),
        plans_(plans) {
    model_.renormalize = detail::renormalizes(model_);
    if (validity_.ok() && plans.empty())
      validity_ =
          status::error(status_code::invalid_argument, "`plans` is empty: nothing uploaded");
    else if (validity_.ok() &&
             (plans.num_experts() != model.num_experts || plans.top_k() != model.top_k))
      validity_ = status::error(status_code::shape_mismatch,
                                "plans are for num_experts = %d, top_k = %d, the gating has %d, %d",
                                plans.num_experts(), plans.top_k(), model.num_experts, model.top_k);
    else if (validity_.ok() &&
             (plans.kind() != model.kind || plans.renormalizes() != detail::renormalizes(model)))
      validity_ = status::error(status_code::shape_mismatch,
                                "plans are for kind = %d, renormalize = %d, the gating has %d, %d",
                                static_cast<int>(plans.kind()), plans.renormalizes() ? 1 : 0,
                                static_cast<int>(model.kind), model_.renormalize ? 1 : 0);
  }

  /// Why this router refuses to launch; ok when it does not.
  [[nodiscard]] const status& validity() const noexcept { return validity_; }

  /// Enqueues one kernel on `stream`. No allocation, no synchronisation; per-token k limits are not
  /// read here, so the caller vouches for 1 <= k_min <= k_max <= K0.
  template <class Logit, class Id = std::int32_t, class Weight = float>
  status route(int layer, const logits_view<Logit>& logits,
               const routing_output<Id, Weight>& output, device_metrics* metrics,
               const routing_extras& extras, cudaStream_t stream) const noexcept {
    return launch(layer, logits, routing_replay<Id>{}, output, metrics, extras, stream);
  }

  /// As router::replay: the weights of experts chosen earlier. What `given` holds is not checked
  /// here: ids that are no expert's are passed over, and counts taken as the nearest of 0..K0.
  template <class Logit, class Id = std::int32_t, class Weight = float>
  status replay(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                const routing_output<Id, Weight>& output, device_metrics* metrics,
                const routing_extras& extras, cudaStream_t stream) const noexcept {
    if (logits.num_tokens > 0 && given.topk_ids == nullptr)
      return status::error(status_code::invalid_argument, "`given.topk_ids` is null");
    return launch(layer, logits, given, output, metrics, extras, stream);
  }

  /// `route` (or `replay`, where `given` has ids) and the permutation of what it chose: one launch
  /// up to 256 tokens (and 800 local experts, where softmax is ranked by logit alone), else two.
  /// Two calls, as cuda::permute: with a null `workspace` only `*workspace_bytes` is set, and no
  /// other pointer is looked at. The first 16 bytes of the workspace must be zero before its first
  /// use here; launches leave it ready for the next. No other stream may use it meanwhile.
  template <class Logit, class Id = std::int32_t, class Weight = float>
  status route_permute(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                       const routing_output<Id, Weight>& output, const expert_major& order,
                       device_metrics* metrics, const routing_extras& extras, void* workspace,
                       std::size_t* workspace_bytes, cudaStream_t stream) const noexcept {
    const permutation_shape shape = {logits.num_tokens, model_.top_k, model_.num_experts,
                                     order.num_local_experts, order.block_size};
    status result = workspace == nullptr ? status() : validity_;
    if (result.ok() && logits.num_experts != model_.num_experts)
      result = status::error(status_code::shape_mismatch,
                             "logits have `num_experts` = %d, expected the gating's %d",
                             logits.num_experts, model_.num_experts);
    if (result.ok())
      result = permute_detail::check_shape(
          shape, workspace == nullptr || order.expert_map != nullptr, workspace_bytes);
    if (!result.ok()) return result;
    const std::size_t needed = permute_detail::workspace_bytes(shape);
    if (workspace == nullptr) {
      *workspace_bytes = needed;
      return {};
    }
    route_params params = {};
    result = prepare(layer, logits, given, output, metrics, extras, &params);
    if (result.ok() && fill_ == fill_id::first_expert && output.topk_counts == nullptr)
      result = status::error(status_code::invalid_argument,
                             "`output.topk_counts` is null: the permutation needs it with the fill "
                             "first_expert");
    if (result.ok()) result = permute_detail::check_workspace(workspace, *workspace_bytes, needed);
    if (!result.ok()) return result;
    const permute_params permutation = permute_detail::make_params<Id>(
        shape, {output.topk_ids, output.topk_counts, order.expert_map}, order.output, workspace);
    if (logits.num_tokens == 0) return launch_permute<false>(permutation, overlaps_, stream);
    const bool softmax_topk = is_softmax_topk<Gating>(params.model) && params.replay_ids == nullptr;
    const bool small = permutation.num_parts == 1;
    const bool at_once =
        small && launch_detail::permutes_itself(softmax_topk, permutation.shape.num_local_experts);
    if (at_once || !small) params.permutation = permutation;
    result = launch_route<Logit, Plan, Gating>(params, stream);
    if (!result.ok() || at_once) return result;
    return small ? launch_permute<false>(permutation, overlaps_, stream)
                 : launch_permute<true>(permutation, overlaps_, stream);
  }

 private:
  template <class Logit, class Id, class Weight>
  status launch(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                const routing_output<Id, Weight>& output, device_metrics* metrics,
                const routing_extras& extras, cudaStream_t stream) const noexcept {
    route_params params = {};
    const status checked = prepare(layer, logits, given, output, metrics, extras, &params);
    if (!checked.ok() || logits.num_tokens == 0) return checked;
    return launch_route<Logit, Plan, Gating>(params, stream);
  }

  /// Checks a call and writes what its launch needs.
  template <class Logit, class Id, class Weight>
  status prepare(int layer, const logits_view<Logit>& logits, const routing_replay<Id>& given,
                 const routing_output<Id, Weight>& output, device_metrics* metrics,
                 const routing_extras& extras, route_params* made) const noexcept {
    const status checked =
        detail::check_call(validity_, model_, plans_.num_layers(), layer, logits,
                           output.topk_ids != nullptr, output.topk_weights != nullptr, extras);
    if (!checked.ok()) return checked;
    if (logits.num_tokens > 0) {
      const status has_head = detail::check_head(model_, plans_.reads_head(), layer, logits);
      if (!has_head.ok()) return has_head;
    }
    if (output.weight_factors != nullptr)
      return status::error(status_code::unsupported,
                           "`output.weight_factors` is given, which the host alone writes");
    route_params& params = *made;
    params.logits = logits.data;
    params.num_tokens = logits.num_tokens;
    params.row_stride = logits.row_stride != 0 ? logits.row_stride : logits.num_experts;
    params.head = logits.head;
    params.head_stride = logits.head_stride != 0 ? logits.head_stride : model_.top_k - 1;
    params.load_width = load_width(logits.data, params.row_stride, logits.num_experts);
    params.model = model_;
    params.plan = plans_.data() + (plans_.num_layers() == 0 ? 0 : layer);
    params.routing_bias = extras.routing_bias;
    params.padding_mask = extras.padding_mask;
    params.k_min = extras.k_min;
    params.k_max = extras.k_max;
    params.replay_ids = given.topk_ids;
    params.replay_counts = given.topk_counts;
    params.topk_ids = output.topk_ids;
    params.topk_weights = output.topk_weights;
    params.topk_counts = output.topk_counts;
    params.chosen_counts = output.chosen_counts;
    params.signal = output.signal;
    params.metrics = metrics;
    params.expert_counts = reinterpret_cast<unsigned long long*>(output.expert_counts);
    params.ids = id_type_of<Id>();
    params.weights = float_type_of<Weight>();
    params.fill = fill_;
    params.overlaps = overlaps_;
    params.multiprocessors = plans_.multiprocessors();
    return {};
  }

  status validity_;
  Gating model_;
  fill_id fill_;
  bool overlaps_;
  basic_plans_ref<Plan> plans_;
};

/// That of the built-in policies.
using device_router = basic_device_router<detail::k_plan>;

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END

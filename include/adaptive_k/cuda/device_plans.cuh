// A router's K policies in device memory, with the tables that they read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "adaptive_k/config.hpp"
#include "adaptive_k/core/choose_k.hpp"
#include "adaptive_k/core/gating.hpp"
#include "adaptive_k/core/k_policy.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/status.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

/// What a device_router reads. Only `device_plans` makes one that is not empty, so that no pointer
/// to host memory reaches a kernel. Trivially copyable; good for as long as its owner lives.
class plans_ref {
 public:
  constexpr plans_ref() noexcept = default;
  /// Whether it refers to nothing.
  bool empty() const noexcept { return data_ == nullptr; }
  const detail::k_plan* data() const noexcept { return data_; }  ///< device memory, a plan a layer
  int num_layers() const noexcept { return num_layers_; }        ///< 0: one plan for every layer
  /// E of the router that they are of.
  int num_experts() const noexcept { return num_experts_; }
  /// K0 of the router that they are of.
  int top_k() const noexcept { return top_k_; }
  /// Of the router that they are of.
  gating_kind kind() const noexcept { return kind_; }
  /// Of the router that they are of.
  bool renormalizes() const noexcept { return renormalizes_; }

 private:
  friend class device_plans;
  const detail::k_plan* data_ = nullptr;
  int num_layers_ = 0;
  int num_experts_ = 0;
  int top_k_ = 0;
  gating_kind kind_ = gating_kind::softmax;
  bool renormalizes_ = false;
};

/// Owns a router's policies on the device that was current at the first upload:
///   cuda::device_plans plans;
///   status result = plans.upload(router, stream);
///   cuda::device_router on_device(router.model(), plans.ref());
/// Later uploads rewrite the same memory: launches behind them on the stream, also those of a graph
/// captured before, follow the new policies. One thread at a time.
class device_plans {
 public:
  device_plans() noexcept = default;
  /// Takes over the memory; `other` is then empty.
  device_plans(device_plans&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), ref_(std::exchange(other.ref_, {})) {}
  /// Takes over the memory; `other` gets what was here.
  device_plans& operator=(device_plans&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(ref_, other.ref_);
    return *this;
  }
  device_plans(const device_plans&) = delete;
  device_plans& operator=(const device_plans&) = delete;
  ~device_plans() {
    if (memory_ != nullptr) (void)cudaFree(memory_);  // of null it would start the runtime
  }

  /// Enqueues a copy of all policies of `from`, an adaptive_k::router, and of the tables that they
  /// point to, on `stream`. The first call allocates, for any policy of that gating and number of
  /// layers: about 4 * (K0 - 1) * (2 E + 5) bytes a layer. Later routers have as many layers, or
  /// one policy for all. Refuses a router that refuses, another shape, tables in device memory, and
  /// a stream whose work is being captured (the graph would copy from host memory that is gone).
  /// `from` need not live on.
  template <class Router>
  status upload(const Router& from, cudaStream_t stream) {
    status result = check(from, stream);
    const std::vector<detail::k_plan>& plans = from.plans();
    for (std::size_t i = 0; i < plans.size() && result.ok(); ++i)
      result = check_tables(plans[i], i);
    const std::size_t count =
        ref_.num_layers_ != 0 ? static_cast<std::size_t>(ref_.num_layers_) : plans.size();
    const layout at(from.model(), count);
    if (result.ok() && memory_ == nullptr) result = to_status(cudaMalloc(&memory_, at.bytes()));
    if (!result.ok()) return result;
    bool has_tables = false;
    for (const detail::k_plan& plan : plans) has_tables = has_tables || plan.predicts_distortion;
    std::vector<unsigned char> image(has_tables ? at.bytes() : count * sizeof(detail::k_plan));
    for (std::size_t i = 0; i < count; ++i) {
      const detail::k_plan moved = move_tables(
          plan_of(from, i), at, i, [&](std::size_t offset) { return image.data() + offset; });
      std::memcpy(image.data() + i * sizeof moved, &moved, sizeof moved);
    }
    result = copy(image.data(), image.size(), 0, stream);
    if (result.ok() && ref_.empty()) {
      ref_ = ref_to(from);
    } else if (ref_.empty()) {  // the next upload may be of another shape
      (void)cudaFree(std::exchange(memory_, nullptr));
    }
    return result;
  }

  /// The same of one layer, 0 <= layer < num_layers, behind an upload of all.
  template <class Router>
  status upload(const Router& from, int layer, cudaStream_t stream) {
    const auto invalid = status_code::invalid_argument;
    if (ref_.empty()) return status::error(invalid, "one layer before an upload of all of them");
    status result = check(from, stream);
    if (!result.ok()) return result;
    if (ref_.num_layers_ == 0)
      return status::error(invalid, "one layer of plans that have one policy for all");
    if (layer < 0 || layer >= ref_.num_layers_)
      return status::error(invalid, "`layer` is %d, expected 0..%d (num_layers - 1)", layer,
                           ref_.num_layers_ - 1);
    const auto i = static_cast<std::size_t>(layer);
    result = check_tables(plan_of(from, i), i);
    if (!result.ok()) return result;
    const layout at(from.model(), static_cast<std::size_t>(ref_.num_layers_));
    std::vector<unsigned char> tables(at.layer_bytes);
    const detail::k_plan moved = move_tables(plan_of(from, i), at, i, [&](std::size_t offset) {
      return tables.data() + (offset - at.tables(i));
    });
    if (moved.predicts_distortion)
      result = copy(tables.data(), tables.size(), at.tables(i), stream);
    if (result.ok()) result = copy(&moved, sizeof moved, i * sizeof moved, stream);
    return result;
  }

  /// What launches take; valid as long as this lives.
  plans_ref ref() const noexcept { return ref_; }

 private:
  /// Where things lie, in bytes: all plans, then each layer's tables, from cache lines on.
  struct layout {
    layout(const gating& model, std::size_t count) noexcept
        : rows(static_cast<std::size_t>(model.top_k - 1)),
          experts(static_cast<std::size_t>(model.num_experts)),
          plan_bytes(whole_lines(count * sizeof(detail::k_plan))),
          coefficient_bytes(whole_lines(rows * distortion_ref::num_features * sizeof(float))),
          expert_bytes(whole_lines(rows * experts * sizeof(float))),
          layer_bytes(coefficient_bytes + 2 * expert_bytes),
          layers(count) {}
    static std::size_t whole_lines(std::size_t bytes) noexcept { return (bytes + 127) / 128 * 128; }
    std::size_t tables(std::size_t layer) const noexcept {
      return plan_bytes + layer * layer_bytes;
    }
    std::size_t bytes() const noexcept { return tables(layers); }

    std::size_t rows, experts, plan_bytes, coefficient_bytes, expert_bytes, layer_bytes, layers;
  };

  template <class Router>
  status check(const Router& from, cudaStream_t stream) const noexcept {
    const status& valid = from.validity();
    if (!valid.ok()) return valid;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    status result = to_status(cudaStreamIsCapturing(stream, &capture));
    if (result.ok() && capture != cudaStreamCaptureStatusNone)
      result = status::error(status_code::invalid_argument,
                             "the stream is being captured: upload before, or between replays");
    if (!result.ok()) return result;
    const gating& model = from.model();
    if (ref_.empty() || (model.num_experts == ref_.num_experts_ && model.top_k == ref_.top_k_ &&
                         (from.num_layers() == ref_.num_layers_ || from.num_layers() == 0)))
      return {};
    return status::error(status_code::shape_mismatch,
                         "the router has num_experts = %d, top_k = %d, num_layers = %d, these "
                         "plans %d, %d, %d",
                         model.num_experts, model.top_k, from.num_layers(), ref_.num_experts_,
                         ref_.top_k_, ref_.num_layers_);
  }

  template <class Router>
  static const detail::k_plan& plan_of(const Router& from, std::size_t layer) noexcept {
    return from.plans()[from.num_layers() == 0 ? 0 : layer];
  }

  template <class Router>
  plans_ref ref_to(const Router& from) const noexcept {
    plans_ref made;
    made.data_ = static_cast<const detail::k_plan*>(memory_);
    made.num_layers_ = from.num_layers();
    made.num_experts_ = from.model().num_experts;
    made.top_k_ = from.model().top_k;
    made.kind_ = from.model().kind;
    made.renormalizes_ = detail::renormalizes(from.model());
    return made;
  }

  static status check_tables(const detail::k_plan& plan, std::size_t layer) noexcept {
    if (!plan.predicts_distortion) return {};
    const std::pair<const char*, const float*> tables[] = {
        {"coefficients", plan.distortion.coefficients},
        {"first_expert", plan.distortion.first_expert},
        {"next_expert", plan.distortion.next_expert}};
    for (const auto& [name, table] : tables) {
      cudaPointerAttributes attributes = {};
      if (table == nullptr) continue;
      if (cudaPointerGetAttributes(&attributes, table) != cudaSuccess)
        (void)cudaGetLastError();  // before CUDA 11 ordinary host memory is an error
      else if (attributes.type == cudaMemoryTypeDevice)
        return status::error(status_code::invalid_argument,
                             "layer %zu: `distortion.%s` points to device memory, expected host "
                             "memory: an upload copies it",
                             layer, name);
    }
    return {};
  }

  /// A layer's plan for the device; its tables are written where `image` has an offset's bytes.
  template <class Image>
  detail::k_plan move_tables(detail::k_plan plan, const layout& at, std::size_t layer,
                             Image image) const {
    static_assert(std::is_trivially_copyable_v<detail::k_plan>, "it is copied as bytes");
    distortion_ref& tables = plan.distortion;
    if (!plan.predicts_distortion) tables.coefficients = nullptr;
    if (!plan.predicts_distortion) tables.first_expert = tables.next_expert = nullptr;
    const auto move = [&](const float*& table, std::size_t columns, std::size_t offset) {
      if (table == nullptr || at.rows == 0) return;
      std::memcpy(image(offset), table, at.rows * columns * sizeof(float));
      table = reinterpret_cast<const float*>(static_cast<const unsigned char*>(memory_) + offset);
    };
    const std::size_t first = at.tables(layer) + at.coefficient_bytes;
    move(tables.coefficients, distortion_ref::num_features, at.tables(layer));
    move(tables.first_expert, at.experts, first);
    move(tables.next_expert, at.experts, first + at.expert_bytes);
    return plan;
  }

  /// From pageable memory, which the runtime has read when the call returns.
  status copy(const void* from, std::size_t bytes, std::size_t offset,
              cudaStream_t stream) noexcept {
    return to_status(cudaMemcpyAsync(static_cast<unsigned char*>(memory_) + offset, from, bytes,
                                     cudaMemcpyHostToDevice, stream));
  }

  void* memory_ = nullptr;
  plans_ref ref_;
};

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END

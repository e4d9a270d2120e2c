// A router's K policies in device memory, with the tables that they read.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
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

/// A table in memory of the host that a plan points to: [K0 - 1, columns] floats.
struct plan_table {
  const float** at;     ///< the plan's pointer
  std::size_t columns;  ///< of a row
  const char* name;     ///< as messages say it
};

/// The tables of a plan: a calibrated one has some, plans of other types hold all that they read.
template <class Plan>
std::array<plan_table, 0> tables_of(Plan&, const gating&) noexcept {
  return {};
}
/// Those of a calibrated policy. A head is the engine's to multiply by, not a kernel's.
inline std::array<plan_table, 3> tables_of(detail::k_plan& plan, const gating& model) noexcept {
  const auto experts = static_cast<std::size_t>(model.num_experts);
  distortion_ref& tables = plan.distortion;
  return {{{&tables.coefficients, distortion_ref::num_features, "distortion.coefficients"},
           {&tables.first_expert, experts, "distortion.first_expert"},
           {&tables.next_expert, experts, "distortion.next_expert"}}};
}

/// No pointer to the host's head goes to the device.
template <class Plan>
void forget_head(Plan&) noexcept {}
/// Of a built-in plan.
inline void forget_head(detail::k_plan& plan) noexcept {
  plan.distortion.head = nullptr;
}

/// What a device router reads. Only `basic_device_plans` makes one that is not empty, so that no
/// pointer to host memory reaches a kernel. Trivially copyable; good for as long as its owner
/// lives.
template <class Plan>
class basic_plans_ref {
 public:
  constexpr basic_plans_ref() noexcept = default;
  /// Whether it refers to nothing.
  bool empty() const noexcept { return data_ == nullptr; }
  const Plan* data() const noexcept { return data_; }      ///< device memory, a plan a layer
  int num_layers() const noexcept { return num_layers_; }  ///< 0: one plan for every layer
  /// E of the router that they are of.
  int num_experts() const noexcept { return num_experts_; }
  /// K0 of the router that they are of.
  int top_k() const noexcept { return top_k_; }
  /// Of the router that they are of.
  gating_kind kind() const noexcept { return kind_; }
  /// Of the router that they are of.
  bool renormalizes() const noexcept { return renormalizes_; }
  /// Multiprocessors that launches may count on.
  int multiprocessors() const noexcept { return multiprocessors_; }
  /// Whether a policy had a router head when `ref` was asked, so that launches must be given one.
  bool reads_head() const noexcept { return reads_head_; }

 private:
  template <class>
  friend class basic_device_plans;
  const Plan* data_ = nullptr;
  int num_layers_ = 0;
  int num_experts_ = 0;
  int top_k_ = 0;
  gating_kind kind_ = gating_kind::softmax;
  bool renormalizes_ = false;
  int multiprocessors_ = 0;
  bool reads_head_ = false;
};

/// Owns a router's policies on the device that was current at the first upload; `ref` is what a
/// `device_router` takes. Later uploads rewrite the same memory: launches behind them on the
/// stream, also those of a graph captured before, follow the new policies. One thread at a time.
template <class Plan>
class basic_device_plans {
 public:
  basic_device_plans() noexcept = default;
  /// `multiprocessors`: that launches may count on, where streams share the device; 0: all of them.
  /// Kernels are chosen by it, results do not depend on it.
  explicit basic_device_plans(int multiprocessors) noexcept : multiprocessors_(multiprocessors) {}
  /// Takes over the memory; `other` is then empty.
  basic_device_plans(basic_device_plans&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        multiprocessors_(other.multiprocessors_),
        ref_(std::exchange(other.ref_, {})) {}
  /// Takes over the memory; `other` gets what was here.
  basic_device_plans& operator=(basic_device_plans&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(multiprocessors_, other.multiprocessors_);
    std::swap(ref_, other.ref_);
    return *this;
  }
  basic_device_plans(const basic_device_plans&) = delete;
  basic_device_plans& operator=(const basic_device_plans&) = delete;
  ~basic_device_plans() {
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
    const std::vector<Plan>& plans = from.plans();
    const gating& model = from.model();
    bool has_tables = false;
    for (std::size_t i = 0; i < plans.size() && result.ok(); ++i)
      result = check_tables(plans[i], model, i, has_tables);
    if (!result.ok()) return result;
    const std::size_t count =
        ref_.num_layers_ != 0 ? static_cast<std::size_t>(ref_.num_layers_) : plans.size();
    const layout at(plans[0], model, count);
    if (multiprocessors_ == 0) result = count_multiprocessors();
    if (!result.ok()) return result;
    if (memory_ == nullptr) result = to_status(cudaMalloc(&memory_, at.bytes()));
    if (!result.ok()) return result;
    std::vector<unsigned char> image(has_tables ? at.bytes() : count * sizeof(Plan));
    for (std::size_t i = 0; i < count; ++i) {
      const Plan moved = move_tables(plan_of(from, i), model, at, i,
                                     [&](std::size_t offset) { return image.data() + offset; });
      std::memcpy(image.data() + i * sizeof moved, static_cast<const void*>(&moved), sizeof moved);
    }
    result = copy(image.data(), image.size(), 0, stream);
    if (result.ok() && ref_.empty()) {
      ref_ = ref_to(from);
    } else if (ref_.empty()) {  // the next upload may be of another shape
      (void)cudaFree(std::exchange(memory_, nullptr));
    }
    if (result.ok()) {
      ref_.reads_head_ = false;
      for (const Plan& plan : plans) ref_.reads_head_ = ref_.reads_head_ || plan.reads_head();
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
    bool has_tables = false;
    result = check_tables(plan_of(from, i), from.model(), i, has_tables);
    if (!result.ok()) return result;
    const layout at(plan_of(from, i), from.model(), static_cast<std::size_t>(ref_.num_layers_));
    std::vector<unsigned char> tables(at.layer_bytes);
    const Plan moved = move_tables(plan_of(from, i), from.model(), at, i, [&](std::size_t offset) {
      return tables.data() + (offset - at.tables(i));
    });
    if (has_tables) result = copy(tables.data(), tables.size(), at.tables(i), stream);
    if (result.ok()) result = copy(&moved, sizeof moved, i * sizeof moved, stream);
    if (result.ok()) ref_.reads_head_ = ref_.reads_head_ || plan_of(from, i).reads_head();
    return result;
  }

  /// What launches take; valid as long as this lives.
  basic_plans_ref<Plan> ref() const noexcept { return ref_; }

 private:
  /// Where things lie, in bytes: all plans, then each layer's tables, from cache lines on.
  struct layout {
    layout(Plan plan, const gating& model, std::size_t count) noexcept
        : rows(static_cast<std::size_t>(model.top_k - 1)),
          plan_bytes(whole_lines(count * sizeof(Plan))),
          layers(count) {
      for (const plan_table& table : tables_of(plan, model))
        layer_bytes += whole_lines(bytes(table));
    }
    static std::size_t whole_lines(std::size_t bytes) noexcept { return (bytes + 127) / 128 * 128; }
    std::size_t bytes(const plan_table& table) const noexcept {
      return rows * table.columns * sizeof(float);
    }
    std::size_t tables(std::size_t layer) const noexcept {
      return plan_bytes + layer * layer_bytes;
    }
    std::size_t bytes() const noexcept { return tables(layers); }

    std::size_t rows, plan_bytes, layers;
    std::size_t layer_bytes = 0;
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

  status count_multiprocessors() noexcept {
    int device = 0;
    status result = to_status(cudaGetDevice(&device));
    if (result.ok())
      result = to_status(
          cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
    return result;
  }

  template <class Router>
  static const Plan& plan_of(const Router& from, std::size_t layer) noexcept {
    return from.plans()[from.num_layers() == 0 ? 0 : layer];
  }

  template <class Router>
  basic_plans_ref<Plan> ref_to(const Router& from) const noexcept {
    basic_plans_ref<Plan> made;
    made.data_ = static_cast<const Plan*>(memory_);
    made.num_layers_ = from.num_layers();
    made.num_experts_ = from.model().num_experts;
    made.top_k_ = from.model().top_k;
    made.kind_ = from.model().kind;
    made.renormalizes_ = detail::renormalizes(from.model());
    made.multiprocessors_ = multiprocessors_;
    return made;
  }

  static status check_tables(Plan plan, const gating& model, std::size_t layer,
                             bool& has_tables) noexcept {
    for (const plan_table& table : tables_of(plan, model)) {
      if (*table.at == nullptr) continue;
      has_tables = true;
      cudaPointerAttributes attributes = {};
      if (cudaPointerGetAttributes(&attributes, *table.at) != cudaSuccess)
        (void)cudaGetLastError();  // before CUDA 11 ordinary host memory is an error
      else if (attributes.type == cudaMemoryTypeDevice)
        return status::error(status_code::invalid_argument,
                             "layer %zu: `%s` points to device memory, expected host memory: an "
                             "upload copies it",
                             layer, table.name);
    }
    return {};
  }

  /// A layer's plan for the device; its tables are written where `image` has an offset's bytes.
  template <class Image>
  Plan move_tables(Plan plan, const gating& model, const layout& at, std::size_t layer,
                   Image image) const {
    static_assert(std::is_trivially_copyable_v<Plan>, "it is copied as bytes");
    std::size_t offset = at.tables(layer);
    for (const plan_table& table : tables_of(plan, model)) {
      const std::size_t bytes = at.bytes(table);
      const float* moved = nullptr;
      if (*table.at != nullptr && bytes != 0) {
        std::memcpy(image(offset), *table.at, bytes);
        moved = reinterpret_cast<const float*>(static_cast<const unsigned char*>(memory_) + offset);
      }
      *table.at = moved;
      offset += layout::whole_lines(bytes);
    }
    forget_head(plan);
    return plan;
  }

  /// From pageable memory, which the runtime has read when the call returns.
  status copy(const void* from, std::size_t bytes, std::size_t offset,
              cudaStream_t stream) noexcept {
    return to_status(cudaMemcpyAsync(static_cast<unsigned char*>(memory_) + offset, from, bytes,
                                     cudaMemcpyHostToDevice, stream));
  }

  void* memory_ = nullptr;
  int multiprocessors_ = 0;
  basic_plans_ref<Plan> ref_;
};

/// Those of the built-in policies.
using plans_ref = basic_plans_ref<detail::k_plan>;
/// Those of the built-in policies.
using device_plans = basic_device_plans<detail::k_plan>;

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END

#include "measure.hpp"

#include "workload.cuh"

namespace kernel_cost {
namespace {

/// Device memory for a permutation, and its workspace, zeroed.
class permuted {
 public:
  permuted(const permutation_shape& shape)
      : counts_(experts(shape)),
        offsets_(experts(shape) + 1),
        slots_(capacity(shape)),
        tokens_(capacity(shape)),
        rows_(static_cast<std::size_t>(shape.num_tokens * shape.top_k)),
        blocks_(capacity(shape)),
        workspace_(cuda::permute_detail::workspace_bytes(shape)),
        stored_(4 * (2 * experts(shape) + 1 + 2 * capacity(shape) +
                     static_cast<std::size_t>(shape.num_tokens * shape.top_k) +
                     capacity(shape) / static_cast<std::size_t>(shape.block_size))) {
    workspace_.clear();
  }
  permutation_output output() const {
    return {counts_.get(), offsets_.get(), slots_.get(), tokens_.get(), rows_.get(), blocks_.get()};
  }
  void* workspace() const { return workspace_.get(); }
  std::size_t stored_bytes() const { return stored_; }

 private:
  static std::size_t experts(const permutation_shape& shape) {
    return static_cast<std::size_t>(shape.num_experts);
  }
  static std::size_t capacity(const permutation_shape& shape) {
    return static_cast<std::size_t>(permuted_capacity(shape));
  }
  device::buffer<std::int32_t> counts_, offsets_, slots_, tokens_, rows_, blocks_;
  device::buffer<unsigned char> workspace_;
  std::size_t stored_;
};

template <class Logit>
cost measure_as(const routing_case& which, bool with_metrics) {
  const workload<Logit> work(which);
  device::buffer<cuda::device_metrics> counters(1);
  counters.clear();
  cuda::device_metrics* const metrics = with_metrics ? counters.get() : nullptr;
  const cuda::device_router router(work.model(), work.plans());
  const auto route = [&] {
    return router.route(0, work.view(), work.output(), metrics, work.extras(), nullptr);
  };
  if (which.operation == "route") return work.count(route, work.logit_bytes(), work.output_bytes());

  const permutation_shape shape = {which.num_tokens, which.top_k, which.num_experts, 0, 64};
  const permuted order(shape);
  std::size_t bytes = cuda::permute_detail::workspace_bytes(shape);
  const int chunk_bytes = cuda::permute_detail::chunk_memory::bytes(which.num_experts);
  if (which.operation == "permute") {
    require(route());
    const permutation_input<> chosen = {work.output().topk_ids, work.output().topk_counts, nullptr};
    return work.count(
        [&] {
          return cuda::permute(shape, chosen, order.output(), order.workspace(), &bytes, false,
                               nullptr);
        },
        4 * (work.slots() + work.tokens()), order.stored_bytes(), chunk_bytes);
  }
  return work.count(
      [&] {
        return router.route_permute(0, work.view(), routing_replay<>{}, work.output(),
                                    cuda::expert_major{order.output(), 64}, metrics, work.extras(),
                                    order.workspace(), &bytes, nullptr);
      },
      work.logit_bytes(), work.output_bytes() + order.stored_bytes(),
      which.num_tokens <= 256 ? chunk_bytes : 0);
}

}  // namespace

cost measure(const routing_case& which, bool with_metrics, const ptx::clock_settings& clock) {
  ptx::set_clock(clock);
  switch (which.dtype) {
    case logit_type::bf16:
      return measure_as<bfloat16>(which, with_metrics);
    case logit_type::f16:
      return measure_as<float16>(which, with_metrics);
    case logit_type::f32:
      break;
  }
  return measure_as<float>(which, with_metrics);
}

const std::vector<std::string>& policies() {
  static const std::vector<std::string> known = {"full", "entropy", "half", "distortion", "head"};
  return known;
}

const std::vector<std::string>& operations() {
  static const std::vector<std::string> known = {"route", "permute", "route_permute"};
  return known;
}

const std::vector<std::string>& gatings() {
  static const std::vector<std::string> known = {"softmax", "sigmoid", "groups"};
  return known;
}

}  // namespace kernel_cost

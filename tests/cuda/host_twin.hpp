// Routes a batch on the device and on the host, and compares every output bit for bit.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"
#include "adaptive_k/cuda/launch.cuh"
#include "device_buffer.hpp"
#include "inputs.hpp"
#include "report.hpp"
#include "schedules.hpp"

namespace twin {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): a test helper

template <class Logit>
struct batch {
  gating model;
  k_policy policy;
  fill_id fill = fill_id::minus_one;
  std::int64_t num_tokens = 0;
  std::int64_t row_stride = 0;
  std::vector<Logit> logits;                             ///< [num_tokens, row_stride]
  std::vector<Logit> head;                               ///< [num_tokens, head_stride], or empty
  std::int64_t head_stride = 0;                          ///< of a head apart from the logits
  bool head_in_rows = false;                             ///< a head behind the logits of each row
  std::vector<float> bias;                               ///< [E] or empty
  std::vector<std::uint8_t> padding_mask, k_min, k_max;  ///< [num_tokens] or empty
  bool shadow = false;
  std::vector<std::int32_t> replay_ids;     ///< [num_tokens, K0], or empty: routed, not replayed
  std::vector<std::int32_t> replay_counts;  ///< [num_tokens]
  bool replays_in_place = false;            ///< the ids given are where the ids go
  int id_gap = 0, weight_gap = 0;           ///< where ids and weights start, in elements
  int multiprocessors = 0;                  ///< that launches may count on; 0: all
};

/// The batch's rows and head where they are: on the host, or on the device.
template <class Logit>
logits_view<Logit> view_of(const batch<Logit>& input, const Logit* rows, const Logit* head) {
  logits_view<Logit> view = {rows, input.num_tokens, input.model.num_experts, input.row_stride};
  view.head = input.head_in_rows ? rows + input.model.num_experts : head;
  view.head_stride = input.head_in_rows ? input.row_stride : input.head_stride;
  return view;
}

template <class T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class T>
void expect_same_bits(const char* what, const std::vector<T>& device, const std::vector<T>& host,
                      std::int64_t per_token) {
  ASSERT_EQ(device.size(), host.size());
  for (std::size_t i = 0; i < host.size(); ++i) {
    ++report::comparisons();
    ASSERT_EQ(std::memcmp(&device[i], &host[i], sizeof(T)), 0)
        << what << " of token " << static_cast<std::int64_t>(i) / per_token << ", slot "
        << static_cast<std::int64_t>(i) % per_token;
  }
}

inline void expect_same_metrics(const routing_metrics& device, const routing_metrics& host) {
  EXPECT_EQ(device.calls, host.calls);
  EXPECT_EQ(device.tokens, host.tokens);
  EXPECT_EQ(device.padding_tokens, host.padding_tokens);
  EXPECT_EQ(device.expert_calls, host.expert_calls);
  EXPECT_EQ(device.full_expert_calls, host.full_expert_calls);
  EXPECT_EQ(device.nonfinite_rows, host.nonfinite_rows);
  EXPECT_EQ(device.distinct_experts, host.distinct_experts);
  EXPECT_EQ(device.signal_sum_fixed, host.signal_sum_fixed);
  EXPECT_EQ(device.signal_sum_high, host.signal_sum_high);
  EXPECT_EQ(device.shadow_expert_calls, host.shadow_expert_calls);
  EXPECT_EQ(device.shadow_full_expert_calls, host.shadow_full_expert_calls);
  EXPECT_EQ(device.super_expert_tokens, host.super_expert_tokens);
  EXPECT_EQ(device.out_of_domain, host.out_of_domain);
  EXPECT_EQ(device.signal_lowest, host.signal_lowest);
  EXPECT_EQ(device.signal_highest, host.signal_highest);
  for (int k = 0; k <= max_top_k; ++k) ASSERT_EQ(device.k_histogram[k], host.k_histogram[k]) << k;
  for (int i = 0; i < max_experts / 64; ++i)
    ASSERT_EQ(device.touched_experts.words[i], host.touched_experts.words[i]) << i;
  report::comparisons() += 15 + max_top_k + 1 + max_experts / 64;
}

/// Optional device copy of a host vector: null where the vector is empty.
template <class T>
class optional_buffer {
 public:
  explicit optional_buffer(const std::vector<T>& values) : values_(values), buffer_(values) {}
  const T* get() const { return values_.empty() ? nullptr : buffer_.get(); }

 private:
  const std::vector<T>& values_;
  device::buffer<T> buffer_;
};

/// Routes `input` both ways with ids of type Id and weights of type Weight.
template <class Id, class Weight, class Logit>
void expect_equal(const batch<Logit>& input) {
  const router host(input.model, input.policy, {input.fill});
  ASSERT_TRUE(host.validity().ok()) << host.validity().message();
  const auto tokens = static_cast<std::size_t>(input.num_tokens);
  const auto slots = tokens * static_cast<std::size_t>(input.model.top_k);
  const logits_view<Logit> host_logits =
      view_of(input, input.logits.data(), data_or_null(input.head));
  const routing_extras host_extras = {data_or_null(input.bias), data_or_null(input.padding_mask),
                                      data_or_null(input.k_min), data_or_null(input.k_max)};
  std::vector<Id> ids(slots);
  std::vector<Weight> weights(slots);
  std::vector<std::int32_t> counts(tokens), chosen(tokens);
  std::vector<float> signal(tokens);
  // Just below what one word holds: every call, of many blocks or few, must carry.
  constexpr std::uint64_t sum_before = ~std::uint64_t{0} - (1u << 22);
  routing_metrics metrics;
  metrics.signal_sum_fixed = static_cast<std::int64_t>(sum_before);
  routing_output<Id, Weight> host_output = {ids.data(), weights.data(), counts.data(),
                                            signal.data(), input.shadow ? chosen.data() : nullptr};
  std::vector<std::uint64_t> expert_counts(static_cast<std::size_t>(input.model.num_experts), 5);
  host_output.expert_counts = expert_counts.data();
  const std::vector<Id> replay_ids(input.replay_ids.begin(), input.replay_ids.end());
  const bool replays = !replay_ids.empty();
  const status host_result =
      replays ? host.replay(0, host_logits,
                            routing_replay<Id>{replay_ids.data(), input.replay_counts.data()},
                            host_output, &metrics, host_extras)
              : host.route(0, host_logits, host_output, &metrics, host_extras);
  ASSERT_TRUE(host_result.ok()) << host_result.message();

  cuda::device_plans plans(input.multiprocessors);
  const status uploaded = plans.upload(host, nullptr);
  ASSERT_TRUE(uploaded.ok()) << uploaded.message();
  const device::buffer<Logit> logits(input.logits);
  const optional_buffer<Logit> head(input.head);
  const optional_buffer<float> bias(input.bias);
  const optional_buffer<std::uint8_t> padding_mask(input.padding_mask), k_min(input.k_min),
      k_max(input.k_max);
  const auto id_gap = static_cast<std::size_t>(input.id_gap);
  const auto weight_gap = static_cast<std::size_t>(input.weight_gap);
  device::buffer<Id> device_ids(id_gap + slots);
  device::buffer<Weight> device_weights(weight_gap + slots);
  Id* const ids_out = device_ids.get() + id_gap;
  Weight* const weights_out = device_weights.get() + weight_gap;
  device::buffer<std::int32_t> device_counts(tokens), device_chosen(tokens);
  device::buffer<float> device_signal(tokens);
  device::buffer<cuda::device_metrics> device_metrics(1);
  std::vector<cuda::device_metrics> counted_before(1);
  counted_before[0].signal_sum_fixed = sum_before;
  device_metrics.write(counted_before);
  const cuda::device_router device_router(input.model, plans.ref(), input.fill);
  const logits_view<Logit> device_logits = view_of<Logit>(input, logits.get(), head.get());
  device::buffer<std::uint64_t> device_expert_counts(
      std::vector<std::uint64_t>(expert_counts.size(), 5));
  const routing_output<Id, Weight> device_output = {ids_out,
                                                    weights_out,
                                                    device_counts.get(),
                                                    device_signal.get(),
                                                    input.shadow ? device_chosen.get() : nullptr,
                                                    device_expert_counts.get()};
  const optional_buffer<Id> device_replay_ids(replay_ids);
  const optional_buffer<std::int32_t> device_replay_counts(input.replay_counts);
  routing_replay<Id> given = {device_replay_ids.get(), device_replay_counts.get()};
  if (replays && input.replays_in_place) {
    device_ids.write(replay_ids);
    device_counts.write(input.replay_counts);
    given = {ids_out, device_counts.get()};
  }
  const routing_extras extras = {bias.get(), padding_mask.get(), k_min.get(), k_max.get()};
  const status result = replays ? device_router.replay(0, device_logits, given, device_output,
                                                       device_metrics.get(), extras, nullptr)
                                : device_router.route(0, device_logits, device_output,
                                                      device_metrics.get(), extras, nullptr);
  ASSERT_TRUE(result.ok()) << result.message() << '\n' << schedules::last_fault();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << schedules::last_fault();

  const std::int64_t top_k = input.model.top_k;
  const auto behind = [](auto values, std::size_t gap) {
    values.erase(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(gap));
    return values;
  };
  expect_same_bits("id", behind(device_ids.read(), id_gap), ids, top_k);
  expect_same_bits("weight", behind(device_weights.read(), weight_gap), weights, top_k);
  expect_same_bits("count", device_counts.read(), counts, 1);
  expect_same_bits("signal", device_signal.read(), signal, 1);
  if (input.shadow) expect_same_bits("chosen k", device_chosen.read(), chosen, 1);
  expect_same_bits("expert count", device_expert_counts.read(), expert_counts, 1);
  expect_same_metrics(cuda::to_metrics<routing_metrics>(device_metrics.read()[0]), metrics);
}

}  // namespace twin

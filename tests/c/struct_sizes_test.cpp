// Structs of every byte size, each alone in memory of exactly that size: those of a header are
// taken, all others refused, and nothing behind them is read (the address sanitizer sees it).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "adaptive_k/c/adaptive_k.h"

namespace {

struct release {
  void operator()(void* memory) const { std::free(memory); }
};

/// The first bytes of a struct, in memory that ends with them; `size` may also be larger.
template <class Struct>
class cut {
 public:
  cut(const Struct& whole, std::size_t size) : memory_(std::malloc(size)) {
    std::memset(memory_.get(), 0, size);
    std::memcpy(memory_.get(), &whole, std::min(size, sizeof whole));
    const auto claimed = static_cast<std::uint32_t>(size);
    std::memcpy(memory_.get(), &claimed, sizeof claimed);
  }
  const Struct* get() const { return static_cast<const Struct*>(memory_.get()); }

 private:
  std::unique_ptr<void, release> memory_;
};

constexpr std::size_t message_ends =
    offsetof(adaptive_k_route_params, message) + sizeof(char*);  // as of every params struct

std::string whole_or_required(const std::string& name, std::size_t size, std::size_t required,
                              std::size_t whole, std::size_t earlier = 0) {
  const std::string start = name + ": struct_size is " + std::to_string(size);
  if (size > whole)
    return start + ", but this library knows " + std::to_string(whole) +
           ": it is older than the caller's header";
  return start + ", expected " + std::to_string(whole) + ", " +
         (earlier != 0 ? std::to_string(earlier) + " as of version 0.1, " : "") + "or " +
         std::to_string(required) + " without the optional fields";
}

/// `call` takes a struct of each size from 4 bytes to some more than it has. `earlier`: its size in
/// version 0.1, if it has grown.
template <class Params, class Call>
void expect_known_sizes(const char* name, Params params, std::size_t required, Call call,
                        std::size_t earlier = 0) {
  for (std::size_t size = sizeof params.struct_size; size <= sizeof params + 16; ++size) {
    SCOPED_TRACE(std::string(name) + " of " + std::to_string(size) + " bytes");
    std::array<char, 200> message = {};
    params.message = message.data();
    params.message_bytes = static_cast<std::uint32_t>(message.size());
    const cut<Params> given(params, size);
    const bool fits = size == required || size == earlier || size == sizeof params;
    EXPECT_EQ(call(given.get()), fits ? ADAPTIVE_K_OK : ADAPTIVE_K_INVALID_ARGUMENT);
    EXPECT_EQ(message.data(),
              fits || size < message_ends
                  ? std::string()
                  : whole_or_required(name, size, required, sizeof params, earlier));
  }
}

template <class Struct>
Struct sized() {
  Struct made = {};
  made.struct_size = sizeof made;
  return made;
}

adaptive_k_gating four_experts() {
  auto made = sized<adaptive_k_gating>();
  made.num_experts = 4;
  made.top_k = 2;
  return made;
}

/// adaptive_k_router_create's result and reason; the router, where there is one, is destroyed.
std::int32_t create(const adaptive_k_gating* gating, const adaptive_k_policy* policies, int layers,
                    std::string* reason = nullptr) {
  std::array<char, 200> message = {};
  auto params = sized<adaptive_k_router_params>();
  params.message = message.data();
  params.message_bytes = static_cast<std::uint32_t>(message.size());
  params.gating = gating;
  params.policies = policies;
  params.num_layers = layers;
  adaptive_k_router* made = nullptr;
  const std::int32_t result = adaptive_k_router_create(&params, &made);
  adaptive_k_router_destroy(made);
  if (reason != nullptr) *reason = message.data();
  return result;
}

class struct_sizes : public ::testing::Test {
 public:
  struct_sizes() {
    auto params = sized<adaptive_k_router_params>();
    params.gating = &gating;
    params.policies = &policy;
    adaptive_k_router_create(&params, &router);
    route.logits = logits.data();
    route.num_tokens = 2;
    route.topk_ids = ids.data();
    route.topk_weights = weights.data();
    permute.topk_ids = ids.data();
    permute.num_tokens = 2;
    permute.top_k = 2;
    permute.num_experts = 4;
    combine.expert_outputs = rows.data();
    combine.output = output.data();
    combine.num_tokens = 2;
    combine.top_k = 2;
    combine.hidden_size = 1;
  }
  ~struct_sizes() override { adaptive_k_router_destroy(router); }

  adaptive_k_gating gating = four_experts();
  adaptive_k_policy policy = sized<adaptive_k_policy>();
  adaptive_k_router* router = nullptr;
  adaptive_k_route_params route = sized<adaptive_k_route_params>();
  adaptive_k_permute_params permute = sized<adaptive_k_permute_params>();
  adaptive_k_combine_params combine = sized<adaptive_k_combine_params>();
  std::array<float, 8> logits = {};
  std::array<std::int32_t, 4> ids = {0, 1, 2, 3};
  std::array<float, 4> weights = {};
  std::array<float, 4> rows = {};
  std::array<float, 2> output = {};
};

TEST_F(struct_sizes, of_calls_are_those_of_a_header) {
  ASSERT_NE(router, nullptr);
  expect_known_sizes(
      "route_params", route, offsetof(adaptive_k_route_params, row_stride),
      [&](const auto* params) { return adaptive_k_route_host(router, params); },
      offsetof(adaptive_k_route_params, expert_counts));
  expect_known_sizes("permute_params", permute, offsetof(adaptive_k_permute_params, block_size),
                     [](const auto* params) { return adaptive_k_permute_host(params); });
  expect_known_sizes("permute_params", permute, offsetof(adaptive_k_permute_params, block_size),
                     [](const auto* params) {
                       return adaptive_k_permuted_capacity(params) == 4
                                  ? ADAPTIVE_K_OK
                                  : ADAPTIVE_K_INVALID_ARGUMENT;
                     });
  expect_known_sizes("combine_params", combine, offsetof(adaptive_k_combine_params, row_stride),
                     [](const auto* params) { return adaptive_k_combine_host(params); });
  auto create_params = sized<adaptive_k_router_params>();
  create_params.gating = &gating;
  create_params.policies = &policy;
  expect_known_sizes("router_params", create_params, offsetof(adaptive_k_router_params, fill),
                     [](const auto* params) {
                       adaptive_k_router* made = nullptr;
                       const std::int32_t result = adaptive_k_router_create(params, &made);
                       EXPECT_EQ(made != nullptr, result == ADAPTIVE_K_OK);
                       adaptive_k_router_destroy(made);
                       return result;
                     });
}

TEST_F(struct_sizes, of_gatings_and_policies_are_those_of_a_header) {
  for (std::size_t size = 4; size <= sizeof gating + 16; ++size) {
    const cut<adaptive_k_gating> given(gating, size);
    const std::size_t required = offsetof(adaptive_k_gating, renormalize);
    const bool fits = size == required || size == sizeof gating;
    std::string reason;
    EXPECT_EQ(create(given.get(), &policy, 0, &reason) == ADAPTIVE_K_OK, fits) << size;
    EXPECT_EQ(reason, fits ? "" : whole_or_required("gating", size, required, sizeof gating));
  }
  for (std::size_t size = 4; size <= sizeof policy + 16; ++size) {
    const std::size_t required = offsetof(adaptive_k_policy, signal);
    const std::size_t earlier = offsetof(adaptive_k_policy, head);
    const bool fits = size == required || size == earlier || size == sizeof policy;
    const cut<adaptive_k_policy> given(policy, size);
    std::string reason;
    EXPECT_EQ(create(&gating, given.get(), 0, &reason) == ADAPTIVE_K_OK, fits) << size;
    EXPECT_EQ(reason,
              fits ? "" : whole_or_required("policy", size, required, sizeof policy, earlier));
  }
}

/// Policies of layers lie struct_size apart: of the required size too, and all alike.
TEST_F(struct_sizes, of_layers_are_alike) {
  struct required_policy {
    std::uint32_t struct_size;
    std::int32_t rule;
  };
  static_assert(sizeof(required_policy) == offsetof(adaptive_k_policy, signal), "");
  std::vector<required_policy> layers(3, {sizeof(required_policy), ADAPTIVE_K_FULL});
  const auto* policies = reinterpret_cast<const adaptive_k_policy*>(layers.data());
  EXPECT_EQ(create(&gating, policies, 3), ADAPTIVE_K_OK);
  std::string reason;
  layers[2].rule = 9;
  EXPECT_EQ(create(&gating, policies, 3, &reason), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(reason, "policies[2]: rule is 9, expected 0..3");
  layers[1].struct_size = 12;
  EXPECT_EQ(create(&gating, policies, 3, &reason), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(reason, "policies[1]: " + whole_or_required("policy", 12, 8, sizeof(adaptive_k_policy),
                                                        offsetof(adaptive_k_policy, head)));

  std::vector<adaptive_k_policy> whole(2, policy);
  whole[1].struct_size = offsetof(adaptive_k_policy, signal);
  EXPECT_EQ(create(&gating, whole.data(), 2, &reason), ADAPTIVE_K_INVALID_ARGUMENT);
  EXPECT_EQ(reason, "policies[1]: struct_size is 8, expected " +
                        std::to_string(sizeof(adaptive_k_policy)) +
                        " as in the policies before it");
}

/// What a call with `field` at an odd address says; the field's array stays where it is otherwise.
template <class Params, class Field, class Call>
void expect_refused_at_odd_addresses(Params params, Field Params::*field, const char* name,
                                     std::size_t alignment, Call call) {
  alignas(16) static std::array<char, 64> elsewhere;
  std::array<char, 200> message = {};
  params.message = message.data();
  params.message_bytes = static_cast<std::uint32_t>(message.size());
  for (std::size_t off = 1; off < alignment; ++off) {
    void* const address = elsewhere.data() + off;
    params.*field = static_cast<Field>(address);
    EXPECT_EQ(call(&params), ADAPTIVE_K_INVALID_ARGUMENT) << name;
    std::array<char, 200> expected = {};
    std::snprintf(expected.data(), expected.size(), "%s is %p, expected a multiple of %zu", name,
                  address, alignment);
    EXPECT_STREQ(message.data(), expected.data());
  }
}

TEST_F(struct_sizes, addresses_are_those_of_the_types) {
  const auto route_host = [&](const auto* params) { return adaptive_k_route_host(router, params); };
  const auto check_route = [&](auto field, const char* name, std::size_t alignment) {
    expect_refused_at_odd_addresses(route, field, name, alignment, route_host);
  };
  using route_type = adaptive_k_route_params;
  check_route(&route_type::logits, "logits", 4);
  check_route(&route_type::topk_ids, "topk_ids", 4);
  check_route(&route_type::topk_weights, "topk_weights", 4);
  check_route(&route_type::topk_counts, "topk_counts", 4);
  check_route(&route_type::signal, "signal", 4);
  check_route(&route_type::chosen_counts, "chosen_counts", 4);
  check_route(&route_type::routing_bias, "routing_bias", 4);
  check_route(&route_type::replay_ids, "replay_ids", 4);
  check_route(&route_type::replay_counts, "replay_counts", 4);
  check_route(&route_type::metrics, "metrics", 8);
  route.ids_type = ADAPTIVE_K_INT64;
  route.logits_type = route.weights_type = ADAPTIVE_K_BFLOAT16;
  check_route(&route_type::logits, "logits", 2);
  check_route(&route_type::topk_ids, "topk_ids", 8);
  check_route(&route_type::topk_weights, "topk_weights", 2);

  const auto check_permute = [&](auto field, const char* name, std::size_t alignment) {
    expect_refused_at_odd_addresses(permute, field, name, alignment, [](const auto* params) {
      return adaptive_k_permute_host(params);
    });
  };
  using permute_type = adaptive_k_permute_params;
  permute.ids_type = ADAPTIVE_K_INT16;
  check_permute(&permute_type::topk_ids, "topk_ids", 2);
  check_permute(&permute_type::topk_counts, "topk_counts", 4);
  check_permute(&permute_type::expert_map, "expert_map", 4);
  check_permute(&permute_type::expert_counts, "expert_counts", 4);
  check_permute(&permute_type::expert_offsets, "expert_offsets", 4);
  check_permute(&permute_type::sorted_slots, "sorted_slots", 4);
  check_permute(&permute_type::sorted_tokens, "sorted_tokens", 4);
  check_permute(&permute_type::row_of_slot, "row_of_slot", 4);
  check_permute(&permute_type::block_experts, "block_experts", 4);

  const auto check_combine = [&](auto field, const char* name, std::size_t alignment) {
    expect_refused_at_odd_addresses(combine, field, name, alignment, [](const auto* params) {
      return adaptive_k_combine_host(params);
    });
  };
  using combine_type = adaptive_k_combine_params;
  check_combine(&combine_type::expert_outputs, "expert_outputs", 4);
  check_combine(&combine_type::output, "output", 4);
  check_combine(&combine_type::row_of_slot, "row_of_slot", 4);
  check_combine(&combine_type::topk_counts, "topk_counts", 4);
  check_combine(&combine_type::topk_weights, "topk_weights", 4);
  check_combine(&combine_type::addend, "addend", 4);
}

TEST_F(struct_sizes, a_struct_at_an_odd_address_is_refused_with_its_reason) {
  alignas(16) std::array<unsigned char, sizeof route + 16> memory = {};
  std::array<char, 200> message = {};
  route.message = message.data();
  route.message_bytes = static_cast<std::uint32_t>(message.size());
  for (std::size_t off = 1; off < alignof(adaptive_k_route_params); ++off) {
    std::memcpy(memory.data() + off, &route, sizeof route);
    void* const address = memory.data() + off;
    EXPECT_EQ(adaptive_k_route_host(router, static_cast<const adaptive_k_route_params*>(address)),
              ADAPTIVE_K_INVALID_ARGUMENT);
    EXPECT_EQ(std::string(message.data()).substr(0, 15), "route_params is");
  }
}

}  // namespace

// The C interface with structs of any size, each exactly that long on the heap: what a caller of
// another version hands over. What a struct lacks is zero, and nothing behind it is read.
#include <adaptive_k/c/adaptive_k.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <type_traits>

#include "fuzz.hpp"
#include "inputs.hpp"

namespace {

struct release {
  void operator()(void* memory) const { std::free(memory); }
};

/// Memory of exactly so many bytes, from malloc: the sanitizer sees one more.
class exact_memory {
 public:
  explicit exact_memory(std::size_t size)
      : size_(size), memory_(static_cast<unsigned char*>(std::malloc(size == 0 ? 1 : size))) {
    for (std::size_t i = 0; i < size; ++i) memory_.get()[i] = filled(i);
  }
  void* data() const { return memory_.get(); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(memory_.get());
  }
  /// Whether it is as it was made.
  bool untouched() const {
    for (std::size_t i = 0; i < size_; ++i)
      if (memory_.get()[i] != filled(i)) return false;
    return true;
  }

 private:
  static unsigned char filled(std::size_t i) { return static_cast<unsigned char>(0xA5u + i); }
  std::size_t size_;
  std::unique_ptr<unsigned char, release> memory_;
};

/// Of a struct without its optional fields: what version 0.1 accepts besides its whole size.
template <class Params>
constexpr std::size_t required_bytes() {
  if constexpr (std::is_same_v<Params, adaptive_k_gating>)
    return offsetof(adaptive_k_gating, renormalize);
  else if constexpr (std::is_same_v<Params, adaptive_k_policy>)
    return offsetof(adaptive_k_policy, signal);
  else if constexpr (std::is_same_v<Params, adaptive_k_router_params>)
    return offsetof(adaptive_k_router_params, fill);
  else if constexpr (std::is_same_v<Params, adaptive_k_route_params>)
    return offsetof(adaptive_k_route_params, row_stride);
  else if constexpr (std::is_same_v<Params, adaptive_k_permute_params>)
    return offsetof(adaptive_k_permute_params, block_size);
  else
    return offsetof(adaptive_k_combine_params, row_stride);
}

/// Its size in version 0.1.
template <class Params>
constexpr std::size_t earlier_bytes() {
  if constexpr (std::is_same_v<Params, adaptive_k_route_params>)
    return offsetof(adaptive_k_route_params, expert_counts);
  else
    return sizeof(Params);
}

/// `full` as a caller has it who was compiled with another header: the front of it, of the size
/// that its struct_size says, and not a byte behind. Mostly this header's own size; now and then at
/// an address that C would not align it to.
template <class Params>
class cut {
 public:
  cut(Params full, fuzz::bytes& from) : cut(full, from, drawn_size(from)) {}
  cut(Params full, fuzz::bytes& from, std::uint32_t size)
      : size_(size),
        offset_(from.chance(24) ? static_cast<std::size_t>(from.between(1, 7)) : 0),
        memory_(offset_ + length()) {
    full.struct_size = size;
    std::memset(memory_.as<char>() + offset_, 0, length());
    std::memcpy(memory_.as<char>() + offset_, &full, std::min(length(), sizeof full));
  }

  Params* get() const { return reinterpret_cast<Params*>(memory_.as<char>() + offset_); }
  /// Bytes that are there: an impossible size is refused by the first word alone.
  std::size_t length() const {
    return std::min(std::max(sizeof(std::uint32_t), std::size_t{size_}), sizeof(Params) + 16);
  }
  std::uint32_t size() const { return size_; }
  bool acceptable() const {
    return offset_ % alignof(Params) == 0 &&
           (size_ == sizeof(Params) || size_ == earlier_bytes<Params>() ||
            size_ == required_bytes<Params>());
  }

  static std::uint32_t drawn_size(fuzz::bytes& from) {
    if (!from.chance(3)) return sizeof(Params);
    if (from.chance(3)) return static_cast<std::uint32_t>(required_bytes<Params>());
    if (from.chance(3)) return static_cast<std::uint32_t>(earlier_bytes<Params>());
    if (from.chance(8)) return from.raw<std::uint32_t>();
    return static_cast<std::uint32_t>(from.between(0, static_cast<int>(sizeof(Params)) + 9));
  }

 private:
  std::uint32_t size_;
  std::size_t offset_;
  exact_memory memory_;
};

void require_acceptable(bool accepted, std::initializer_list<bool> structs) {
  for (const bool acceptable : structs)
    fuzz::require(!accepted || acceptable, "a struct of an unknown size or address is refused");
}

struct message_buffer {
  std::uint32_t size;
  exact_memory memory;

  explicit message_buffer(fuzz::bytes& from)
      : size(static_cast<std::uint32_t>(from.chance(3) ? from.between(0, 40) : 240)),
        memory(size) {}

  template <class Params>
  void attach(Params& params) const {
    params.message = size == 0 ? nullptr : memory.as<char>();
    params.message_bytes = size;
  }
  /// Whatever was written ends within it.
  void require_ended(bool refused) const {
    if (!refused || memory.untouched()) return;
    fuzz::require(std::memchr(memory.data(), 0, size) != nullptr, "a message ends with a zero");
    const std::string text = memory.as<char>();
    fuzz::require(fuzz::is_utf8(text), "a message in UTF-8");
  }
};

std::size_t float_bytes(std::int32_t type) {
  return type == ADAPTIVE_K_FLOAT16 || type == ADAPTIVE_K_BFLOAT16 ? 2 : 4;
}
std::size_t id_bytes(std::int32_t type) {
  if (type == ADAPTIVE_K_INT16 || type == ADAPTIVE_K_UINT16) return 2;
  return type == ADAPTIVE_K_INT32 ? 4 : 8;
}

std::int64_t id_at(const exact_memory& ids, std::int32_t type, std::size_t i) {
  switch (type) {
    case ADAPTIVE_K_INT64:
      return ids.as<std::int64_t>()[i];
    case ADAPTIVE_K_INT32:
      return ids.as<std::int32_t>()[i];
    case ADAPTIVE_K_INT16:
      return ids.as<std::int16_t>()[i];
    default:
      return ids.as<std::uint16_t>()[i];
  }
}

/// A value of an enumeration, now and then none.
std::int32_t drawn_choice(fuzz::bytes& from, int last) {
  return from.chance(24) ? from.raw<std::int32_t>() : from.between(0, last);
}

void fill_floats(const exact_memory& memory, std::size_t count, std::int32_t type,
                 inputs::sequence& random) {
  for (std::size_t i = 0; i < count; ++i) {
    const float value = inputs::grid_logit(random, 96);
    if (type == ADAPTIVE_K_FLOAT16)
      memory.as<std::uint16_t>()[i] = adaptive_k::from_float<adaptive_k::float16>(value).bits;
    else if (type == ADAPTIVE_K_BFLOAT16)
      memory.as<std::uint16_t>()[i] = adaptive_k::from_float<adaptive_k::bfloat16>(value).bits;
    else
      memory.as<float>()[i] = value;
  }
}

struct destroy {
  void operator()(adaptive_k_router* router) const { adaptive_k_router_destroy(router); }
};
using router_handle = std::unique_ptr<adaptive_k_router, destroy>;

struct drawn_router {
  adaptive_k_gating gating = {};
  std::int32_t num_layers = 0;
  router_handle handle;

  explicit drawn_router(fuzz::bytes& from) {
    gating.kind = drawn_choice(from, ADAPTIVE_K_SPARSEMIXER);
    gating.num_experts = from.chance(6) ? from.between(-1, 1100) : from.between(1, 16);
    gating.top_k = from.chance(6) ? from.between(-1, 40) : from.between(1, 4);
    gating.renormalize = from.between(0, 1);
    gating.selection_bias = from.chance(4) ? 1 : 0;
    gating.routed_scaling_factor = from.chance(4) ? from.raw<float>() : 0.0f;
    gating.n_group = from.chance(4) ? from.between(-1, 40) : 0;
    gating.topk_group = from.chance(4) ? from.between(-1, 40) : 0;
    gating.group_rank = drawn_choice(from, ADAPTIVE_K_GROUP_MAXIMUM);
    gating.jitter_epsilon = from.chance(6) ? from.raw<float>() : 0.0f;

    adaptive_k_policy policy = {};
    policy.rule = drawn_choice(from, ADAPTIVE_K_DISTORTION);
    policy.signal = drawn_choice(from, ADAPTIVE_K_MARGIN);
    policy.num_k_values = policy.rule == ADAPTIVE_K_FULL ? 0 : from.between(0, 33);
    if (!from.chance(4)) policy.num_k_values = 1;
    for (int i = 0; i < 32; ++i) {
      policy.k_values[i] =
          static_cast<std::uint8_t>(from.chance(9) ? from.raw<std::uint8_t>() : i + 1);
      policy.thresholds[i] = from.chance(9) ? from.raw<float>() : static_cast<float>(i + 1) / 33.0f;
    }
    policy.k_min = from.chance(4) ? from.between(-1, 256) : 0;
    policy.k_max = from.chance(4) ? from.between(-1, 256) : 0;
    policy.mass_exponent_given = from.between(0, 1);
    policy.mass_exponent = from.chance(4) ? from.raw<float>() : 0.5f;
    policy.sensitivity = from.chance(4) ? from.raw<float>() : 0.0f;
    policy.lambda = from.chance(4) ? from.raw<float>() : 0.0f;
    const bool plausible = gating.top_k >= 1 && gating.top_k <= 32 && gating.num_experts >= 1;
    const std::size_t rows = plausible ? static_cast<std::size_t>(gating.top_k - 1) : 0;
    const exact_memory coefficients(rows * 5 * sizeof(float));
    const exact_memory table(plausible ? rows * static_cast<std::size_t>(gating.num_experts) * 4
                                       : 0);
    policy.coefficients = from.chance(6) ? nullptr : coefficients.as<float>();
    policy.first_expert = from.coin() ? table.as<float>() : nullptr;
    policy.next_expert = from.coin() ? table.as<float>() : nullptr;

    policy.num_super_experts = from.chance(4) ? from.between(-1, 9) : 0;
    for (std::uint16_t& expert : policy.super_experts) expert = from.raw<std::uint8_t>();

    num_layers = from.chance(3) ? from.between(-1, 3) : 0;
    const cut<adaptive_k_policy> one(policy, from);
    const std::size_t copies = num_layers < 1 ? 1 : static_cast<std::size_t>(num_layers);
    const exact_memory policies(one.length() * copies);
    for (std::size_t i = 0; i < copies; ++i)
      std::memcpy(policies.as<char>() + i * one.length(), one.get(), one.length());
    const cut<adaptive_k_gating> cut_gating(gating, from);
    adaptive_k_router_params params = {};
    const message_buffer message(from);
    message.attach(params);
    params.gating = from.chance(24) ? nullptr : cut_gating.get();
    params.policies = from.chance(24) ? nullptr : policies.as<adaptive_k_policy>();
    params.num_layers = num_layers;
    params.fill = drawn_choice(from, ADAPTIVE_K_FILL_FIRST_EXPERT);
    const cut<adaptive_k_router_params> given(params, from);
    adaptive_k_router* made = nullptr;
    const std::int32_t result = adaptive_k_router_create(given.get(), &made);
    handle.reset(made);
    fuzz::require((result == ADAPTIVE_K_OK) == (made != nullptr), "a router, or a refusal");
    message.require_ended(result != ADAPTIVE_K_OK);
    const bool whole_policies = one.size() == sizeof(adaptive_k_policy) ||
                                one.size() == required_bytes<adaptive_k_policy>();
    require_acceptable(made != nullptr,
                       {given.acceptable(), cut_gating.acceptable(), whole_policies});
    if (made != nullptr)  // the tables end with this scope: it routes by copies
      fuzz::require(adaptive_k_router_num_layers(made) == num_layers, "layers are those given");
  }
};

void route(fuzz::bytes& from, const drawn_router& router) {
  const std::int64_t num_tokens = from.between(-1, 4);
  const auto tokens = static_cast<std::size_t>(num_tokens < 0 ? 0 : num_tokens);
  const auto experts = static_cast<std::size_t>(router.gating.num_experts);
  const auto top_k = static_cast<std::size_t>(router.gating.top_k);
  adaptive_k_route_params params = {};
  params.num_tokens = num_tokens;
  params.logits_type = drawn_choice(from, ADAPTIVE_K_BFLOAT16);
  params.ids_type = drawn_choice(from, ADAPTIVE_K_UINT16);
  params.weights_type = drawn_choice(from, ADAPTIVE_K_BFLOAT16);
  params.layer = from.chance(4) ? from.between(-1, 4) : 0;
  params.row_stride = from.coin() ? 0 : static_cast<std::int64_t>(experts) + from.between(-1, 3);
  params.reserved = from.chance(16) ? from.raw<std::int32_t>() : 0;
  params.overlap_previous = from.between(0, 1);
  const std::size_t stride =
      params.row_stride == 0 ? experts : static_cast<std::size_t>(params.row_stride);
  const std::size_t elements = tokens == 0 ? 0 : (tokens - 1) * std::max(stride, experts) + experts;
  const exact_memory logits(elements * float_bytes(params.logits_type));
  inputs::sequence random(from.raw<std::uint32_t>());
  fill_floats(logits, elements, params.logits_type, random);
  const std::uint32_t size = cut<adaptive_k_route_params>::drawn_size(from);
  const std::size_t metrics_bytes =
      size == sizeof params ? sizeof(adaptive_k_metrics) : adaptive_k_metrics_bytes();
  const exact_memory ids(tokens * top_k * id_bytes(params.ids_type)),
      weights(tokens * top_k * float_bytes(params.weights_type)), counts(tokens * 4),
      signal(tokens * 4), chosen(tokens * 4), bias(experts * 4), padding(tokens), k_min(tokens),
      k_max(tokens), replay(tokens * top_k * id_bytes(params.ids_type)), replay_counts(tokens * 4),
      metrics(metrics_bytes), expert_counts(experts * 8);
  std::memset(metrics.data(), 0, metrics_bytes);
  std::memset(expert_counts.data(), 0, experts * 8);
  fill_floats(bias, experts, ADAPTIVE_K_FLOAT32, random);
  for (std::size_t t = 0; t < tokens; ++t) {
    padding.as<std::uint8_t>()[t] = from.chance(4) ? 1 : 0;
    const int low = from.between(from.chance(9) ? 0 : 1, static_cast<int>(top_k));
    k_min.as<std::uint8_t>()[t] = static_cast<std::uint8_t>(low);
    k_max.as<std::uint8_t>()[t] =
        static_cast<std::uint8_t>(from.chance(9) ? from.between(0, 40) : static_cast<int>(top_k));
    replay_counts.as<std::int32_t>()[t] =
        from.between(from.chance(9) ? -1 : 0, static_cast<int>(top_k));
  }
  for (std::size_t i = 0; i < tokens * top_k; ++i) {
    const std::int64_t id = from.between(from.chance(30) ? -1 : 0, static_cast<int>(experts) - 1);
    std::memcpy(replay.as<char>() + i * id_bytes(params.ids_type), &id, id_bytes(params.ids_type));
  }
  const auto given = [&](const exact_memory& memory, int one_in) {
    return from.chance(one_in) ? nullptr : memory.data();
  };
  params.logits = given(logits, 24);
  params.topk_ids = given(ids, 24);
  params.topk_weights = given(weights, 24);
  params.topk_counts = static_cast<std::int32_t*>(given(counts, 4));
  params.signal = static_cast<float*>(given(signal, 4));
  params.chosen_counts = from.chance(4) ? chosen.as<std::int32_t>() : nullptr;
  params.routing_bias = static_cast<const float*>(given(bias, 9));
  params.padding_mask = from.chance(3) ? padding.as<std::uint8_t>() : nullptr;
  params.k_min = from.chance(3) ? k_min.as<std::uint8_t>() : nullptr;
  params.k_max = from.chance(3) ? k_max.as<std::uint8_t>() : nullptr;
  params.replay_ids = from.chance(4) ? replay.data() : nullptr;
  params.replay_counts = from.chance(3) ? replay_counts.as<std::int32_t>() : nullptr;
  params.metrics = from.coin() ? metrics.data() : nullptr;
  const message_buffer message(from);
  message.attach(params);
  params.expert_counts = from.chance(3) ? expert_counts.as<std::uint64_t>() : nullptr;
  const cut<adaptive_k_route_params> call(params, from, size);
  const std::int32_t result =
      adaptive_k_route_host(from.chance(40) ? nullptr : router.handle.get(), call.get());
  message.require_ended(result != ADAPTIVE_K_OK);
  require_acceptable(result == ADAPTIVE_K_OK, {call.acceptable()});
  if (result != ADAPTIVE_K_OK) {
    fuzz::require(ids.untouched() && weights.untouched() && counts.untouched() &&
                      signal.untouched() && chosen.untouched(),
                  "with a refusal nothing is written");
    return;
  }
  if (counts.untouched() || params.topk_ids == nullptr) return;
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::int32_t count = counts.as<std::int32_t>()[t];
    fuzz::require(count >= 0 && count <= static_cast<std::int32_t>(top_k), "k_t within 0..K0");
    for (std::size_t j = 0; j < static_cast<std::size_t>(count); ++j) {
      const std::int64_t id = id_at(ids, params.ids_type, t * top_k + j);
      fuzz::require(id >= 0 && id < static_cast<std::int64_t>(experts), "ids within 0..E-1");
    }
  }
}

void permute(fuzz::bytes& from) {
  adaptive_k_permute_params params = {};
  params.num_tokens = from.between(-1, 6);
  params.top_k = from.between(0, from.chance(6) ? 33 : 5);
  params.num_experts = from.chance(6) ? from.between(-1, 1025) : from.between(1, 9);
  params.ids_type = drawn_choice(from, ADAPTIVE_K_UINT16);
  params.block_size = from.chance(6) ? from.between(-1, 1025) : from.between(0, 4);
  const bool has_map = from.coin();
  params.num_local_experts = has_map || from.chance(12) ? from.between(-1, 9) : 0;
  const auto size = [](std::int64_t count) {
    return static_cast<std::size_t>(count < 0 ? 0 : count);
  };
  const std::size_t slots = size(params.num_tokens) * size(params.top_k);
  const exact_memory ids(slots * id_bytes(params.ids_type)), counts(size(params.num_tokens) * 4),
      map(size(params.num_experts) * 4);
  for (std::size_t i = 0; i < slots; ++i) {
    const std::int64_t id = from.between(-1, params.num_experts < 0 ? 0 : params.num_experts);
    std::memcpy(ids.as<char>() + i * id_bytes(params.ids_type), &id, id_bytes(params.ids_type));
  }
  for (std::size_t t = 0; t < size(params.num_tokens); ++t)
    counts.as<std::int32_t>()[t] = from.between(-1, params.top_k + 1);
  for (std::size_t e = 0; e < size(params.num_experts); ++e)
    map.as<std::int32_t>()[e] = from.between(-1, 10);
  params.topk_ids = from.chance(24) ? nullptr : ids.data();
  params.topk_counts = from.coin() ? counts.as<std::int32_t>() : nullptr;
  params.expert_map = has_map ? map.as<std::int32_t>() : nullptr;
  const message_buffer message(from);
  message.attach(params);
  const std::uint32_t struct_size = cut<adaptive_k_permute_params>::drawn_size(from);
  const cut<adaptive_k_permute_params> asked(params, from, struct_size);
  const std::int64_t capacity = adaptive_k_permuted_capacity(asked.get());
  if (capacity < 0 && !asked.acceptable()) return;  // the shape itself may be fine
  const int local = params.num_local_experts != 0 ? params.num_local_experts : params.num_experts;
  // What the struct lacks is zero, so L may be E after all: room for the larger.
  const std::int64_t most = local > params.num_experts ? local : params.num_experts;
  const exact_memory expert_counts(size(most) * 4), offsets(size(most + 1) * 4),
      sorted_slots(size(capacity) * 4), sorted_tokens(size(capacity) * 4), row_of_slot(slots * 4),
      blocks(size(capacity) * 4);
  const auto out = [&](const exact_memory& memory) {
    return from.chance(5) ? nullptr : memory.as<std::int32_t>();
  };
  params.expert_counts = out(expert_counts);
  params.expert_offsets = out(offsets);
  params.sorted_slots = out(sorted_slots);
  params.sorted_tokens = out(sorted_tokens);
  params.row_of_slot = out(row_of_slot);
  params.block_experts = out(blocks);
  const cut<adaptive_k_permute_params> call(params, from, struct_size);
  const std::int32_t result = adaptive_k_permute_host(call.get());
  message.require_ended(result != ADAPTIVE_K_OK);
  require_acceptable(result == ADAPTIVE_K_OK, {call.acceptable()});
  if (result != ADAPTIVE_K_OK)
    fuzz::require(expert_counts.untouched() && offsets.untouched() && row_of_slot.untouched(),
                  "with a refusal nothing is written");
  else
    fuzz::require(capacity >= 0, "what permutes has a capacity");
}

void combine(fuzz::bytes& from) {
  adaptive_k_combine_params params = {};
  params.num_tokens = from.between(-1, 4);
  params.top_k = from.between(0, from.chance(6) ? 33 : 4);
  params.hidden_size = from.between(-1, from.chance(6) ? 300 : 9);
  params.values_type = drawn_choice(from, ADAPTIVE_K_BFLOAT16);
  params.weights_type = drawn_choice(from, ADAPTIVE_K_BFLOAT16);
  params.row_stride = from.coin() ? 0 : params.hidden_size + from.between(-1, 3);
  params.reserved = from.chance(16) ? from.raw<std::int32_t>() : 0;
  const auto size = [](std::int64_t count) {
    return static_cast<std::size_t>(count < 0 ? 0 : count);
  };
  const std::size_t tokens = size(params.num_tokens), slots = tokens * size(params.top_k);
  const std::size_t hidden = size(params.hidden_size);
  const std::size_t stride = params.row_stride > 0 ? size(params.row_stride) : hidden;
  const std::size_t elements =
      slots == 0 ? 0 : (slots - 1) * (stride < hidden ? hidden : stride) + hidden;
  inputs::sequence random(from.raw<std::uint32_t>());
  const exact_memory experts(elements * float_bytes(params.values_type)),
      output(tokens * hidden * float_bytes(params.values_type)),
      addend(tokens * hidden * float_bytes(params.values_type)),
      weights(slots * float_bytes(params.weights_type)), rows(slots * 4), counts(tokens * 4);
  fill_floats(experts, elements, params.values_type, random);
  fill_floats(addend, tokens * hidden, params.values_type, random);
  fill_floats(weights, slots, params.weights_type, random);
  for (std::size_t i = 0; i < slots; ++i)
    rows.as<std::int32_t>()[i] = random.below(static_cast<int>(slots) + 1) - 1;
  for (std::size_t t = 0; t < tokens; ++t)
    counts.as<std::int32_t>()[t] = from.between(-1, params.top_k + 1);
  params.expert_outputs = from.chance(24) ? nullptr : experts.data();
  params.output = from.chance(24) ? nullptr : output.data();
  params.row_of_slot = from.coin() ? rows.as<std::int32_t>() : nullptr;
  params.topk_counts = from.coin() ? counts.as<std::int32_t>() : nullptr;
  params.topk_weights = from.chance(4) ? nullptr : weights.data();
  params.addend = from.coin() ? addend.data() : nullptr;
  const message_buffer message(from);
  message.attach(params);
  const cut<adaptive_k_combine_params> call(params, from);
  const std::int32_t result = adaptive_k_combine_host(call.get());
  message.require_ended(result != ADAPTIVE_K_OK);
  require_acceptable(result == ADAPTIVE_K_OK, {call.acceptable()});
  if (result != ADAPTIVE_K_OK)
    fuzz::require(output.untouched(), "with a refusal nothing is written");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::bytes from(data, size);
  switch (from.between(0, 3)) {
    case 0:
      permute(from);
      break;
    case 1:
      combine(from);
      break;
    default: {
      const drawn_router router(from);
      if (router.handle != nullptr) route(from, router);
      fuzz::require(adaptive_k_status_text(from.raw<std::int32_t>()) != nullptr, "a status's text");
    }
  }
  return 0;
}

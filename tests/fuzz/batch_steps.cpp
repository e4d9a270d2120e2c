// Permutation with an expert map, the combine step and the expert budget against naive references.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/control/expert_budget.hpp>
#include <adaptive_k/host/expert_combine.hpp>
#include <adaptive_k/host/permutation.hpp>
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "fuzz.hpp"
#include "inputs.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

template <class T>
const T* or_null(const std::vector<T>& values, bool given) {
  return given ? values.data() : nullptr;
}

// --- Permutation -------------------------------------------------------------------------------

/// Rows by a walk over experts, then tokens: the definition, with nothing clever.
template <class Id>
void permute_and_compare(fuzz::bytes& from) {
  permutation_shape shape;
  shape.num_tokens = from.between(0, 12);
  shape.top_k = from.between(0, 33);
  shape.num_experts = from.chance(4) ? from.between(0, 1025) : from.between(1, 12);
  shape.block_size = from.chance(4) ? from.between(0, 1025) : from.between(1, 5);
  const bool has_counts = from.coin(), has_map = from.coin();
  if (has_map) shape.num_local_experts = from.between(0, 14);
  const int num_local = shape.num_local_experts != 0 ? shape.num_local_experts : shape.num_experts;
  const bool fits = validate(shape).ok();
  const std::size_t slots = at(shape.num_tokens * shape.top_k);
  std::vector<Id> ids(slots);
  for (Id& id : ids)
    id = from.chance(12) ? from.raw<Id>() : static_cast<Id>(from.between(-1, shape.num_experts));
  std::vector<std::int32_t> counts(at(shape.num_tokens)), map(at(shape.num_experts));
  for (std::int32_t& count : counts)
    count = from.chance(12) ? from.raw<std::int32_t>() : from.between(-1, shape.top_k + 1);
  for (std::int32_t& local : map)
    local = from.chance(12) ? from.raw<std::int32_t>() : from.between(-1, num_local);
  const std::size_t capacity = fits ? at(permuted_capacity(shape)) : 0;
  constexpr std::int32_t untouched = -77;
  std::vector<std::int32_t> expert_counts(at(num_local), untouched),
      offsets(at(num_local + 1), untouched), sorted_slots(capacity, untouched),
      sorted_tokens(capacity, untouched), row_of_slot(slots, untouched),
      blocks(fits ? capacity / at(shape.block_size) : 0, untouched);
  const unsigned wanted = ~from.raw<std::uint8_t>();  // zeros, past the end: all of them
  const auto out = [&](std::vector<std::int32_t>& values, unsigned bit) {
    return (wanted & bit) != 0 ? values.data() : nullptr;
  };
  const permutation_output output = {out(expert_counts, 1), out(offsets, 2),
                                     out(sorted_slots, 4),  out(sorted_tokens, 8),
                                     out(row_of_slot, 16),  out(blocks, 32)};
  const permutation_input<Id> input = {ids.data(), or_null(counts, has_counts),
                                       or_null(map, has_map)};
  const status result = permute(shape, input, output);
  if (!result.ok()) {
    fuzz::require_message(result.message());
    fuzz::require(!fits || (!has_map && num_local != shape.num_experts) || ids.data() == nullptr,
                  std::string("refused, though it fits: ") + result.message());
    for (const auto* values : {&expert_counts, &offsets, &row_of_slot})
      for (const std::int32_t value : *values)
        fuzz::require(value == untouched, "with a refusal nothing is written");
    return;
  }
  fuzz::require(fits, "a shape outside its ranges is refused");

  std::int32_t row = 0;
  std::vector<std::int32_t> expected_row_of_slot(slots, -1);
  for (int e = 0; e < num_local; ++e) {
    const std::int32_t first = row;
    for (std::int64_t t = 0; t < shape.num_tokens; ++t)
      for (int j = 0; j < shape.top_k; ++j) {
        if (has_counts && j >= counts[at(t)]) break;
        const std::int64_t slot = t * shape.top_k + j;
        const auto id = static_cast<std::int64_t>(ids[at(slot)]);
        if (id < 0 || id >= shape.num_experts) continue;
        if ((has_map ? map[at(id)] : static_cast<std::int32_t>(id)) != e) continue;
        expected_row_of_slot[at(slot)] = row;
        if ((wanted & 4u) != 0) fuzz::require(sorted_slots[at(row)] == slot, "sorted_slots");
        if ((wanted & 8u) != 0) fuzz::require(sorted_tokens[at(row)] == t, "sorted_tokens");
        ++row;
        break;  // an expert is taken once per token
      }
    if ((wanted & 1u) != 0) fuzz::require(expert_counts[at(e)] == row - first, "expert_counts");
    if ((wanted & 2u) != 0) fuzz::require(offsets[at(e)] == first, "expert_offsets");
    const int block = shape.block_size;
    const std::int32_t end = (row + block - 1) / block * block;
    for (; row < end; ++row) {
      if ((wanted & 4u) != 0) fuzz::require(at(sorted_slots[at(row)]) == slots, "padding slots");
      if ((wanted & 8u) != 0)
        fuzz::require(sorted_tokens[at(row)] == shape.num_tokens, "padding tokens");
    }
    for (std::int32_t b = first / block; (wanted & 32u) != 0 && b < end / block; ++b)
      fuzz::require(blocks[at(b)] == e, "block_experts");
  }
  if ((wanted & 2u) != 0) fuzz::require(offsets[at(num_local)] == row, "the last offset");
  fuzz::require(at(row) <= capacity, "rows within the capacity");
  for (std::size_t i = at(row); i < capacity; ++i) {
    if ((wanted & 4u) != 0) fuzz::require(at(sorted_slots[i]) == slots, "slots past the end");
    if ((wanted & 8u) != 0)
      fuzz::require(sorted_tokens[i] == shape.num_tokens, "tokens past the end");
  }
  for (std::size_t b = at(row / shape.block_size); (wanted & 32u) != 0 && b < blocks.size(); ++b)
    fuzz::require(blocks[b] == -1, "blocks past the end");
  if ((wanted & 16u) != 0) fuzz::require(row_of_slot == expected_row_of_slot, "row_of_slot");
}

// --- Combine -----------------------------------------------------------------------------------

template <class Value, class Weight>
void combine_and_compare(fuzz::bytes& from) {
  combine_shape shape;
  shape.num_tokens = from.between(0, 5);
  shape.top_k = from.between(1, 32);
  shape.hidden_size = from.chance(6) ? from.between(250, 530) : from.between(1, 9);
  shape.row_stride = from.coin() ? 0 : shape.hidden_size + from.between(0, 3);
  const std::int64_t stride = shape.row_stride != 0 ? shape.row_stride : shape.hidden_size;
  const bool has_rows = from.coin(), has_counts = from.coin(), has_weights = !from.chance(4),
             has_addend = from.coin(), in_place = from.chance(3);
  const std::int64_t slots = shape.num_tokens * shape.top_k;
  const std::int64_t num_rows = has_rows ? 1 + from.between(0, 9) : slots;
  inputs::sequence random(from.raw<std::uint32_t>());
  const auto value = [&] {
    return from_float<Value>(random.chance(16) ? inputs::from_bits(random.bits())
                                               : inputs::fine_logit(random));
  };
  std::vector<Value> experts(at(num_rows * stride)),
      addend(at(shape.num_tokens * shape.hidden_size));
  for (Value& one : experts) one = value();
  for (Value& one : addend) one = value();
  std::vector<std::int32_t> rows(at(slots)), counts(at(shape.num_tokens));
  for (std::int32_t& one : rows) one = from.between(-1, static_cast<int>(num_rows) - 1);
  for (std::int32_t& one : counts) one = from.between(-1, shape.top_k + 2);
  std::vector<Weight> weights(at(slots));
  for (Weight& one : weights)
    one = from_float<Weight>(random.chance(20) ? inputs::from_bits(random.bits())
                                               : static_cast<float>(random.below(1000)) / 977.0f);
  combine_input<Value, Weight> input = {experts.data(), or_null(rows, has_rows),
                                        or_null(counts, has_counts), or_null(weights, has_weights),
                                        or_null(addend, has_addend)};
  std::vector<Value> output(addend.size());
  if (in_place && has_addend) {
    output = addend;
    input.addend = output.data();
  }
  const status result = combine_experts(shape, input, output.data());
  fuzz::require(result.ok(), result.message());
  for (std::int64_t t = 0; t < shape.num_tokens; ++t)
    for (int h = 0; h < shape.hidden_size; ++h) {
      float sum = has_addend ? to_float(addend[at(t * shape.hidden_size + h)]) : 0.0f;
      for (int j = 0; j < shape.top_k; ++j) {
        if (has_counts && j >= counts[at(t)]) break;
        const std::int64_t slot = t * shape.top_k + j;
        const std::int64_t row = has_rows ? rows[at(slot)] : slot;
        if (row < 0) continue;
        const float weight = has_weights ? to_float(weights[at(slot)]) : 1.0f;
        sum = std::fma(weight, to_float(experts[at(row * stride + h)]), sum);
      }
      const Value got = output[at(t * shape.hidden_size + h)];
      const Value expected = from_float<Value>(sum);
      const bool both_nan = std::isnan(sum) && std::isnan(to_float(got));
      fuzz::require(both_nan || std::memcmp(&got, &expected, sizeof got) == 0, "the weighted sum");
    }
}

// --- Budget ------------------------------------------------------------------------------------

void restrict_and_compare(fuzz::bytes& from) {
  const int num_experts = from.between(1, 20);
  const int top_k = from.between(1, num_experts < 8 ? num_experts : 8);
  const std::int64_t num_tokens = from.between(0, 9);
  const int k_min = from.between(1, top_k);
  const int budget = from.between(0, num_experts + 1);
  const admission order = from.chance(4) ? admission::index : admission::gate_mass;
  const bool valid_ids = !from.chance(6);
  std::vector<std::int32_t> ids(at(num_tokens * top_k), -1), counts(at(num_tokens));
  std::vector<float> weights(ids.size(), 0.0f);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    counts[at(t)] = from.between(0, top_k);
    std::set<int> taken;
    for (int j = 0; j < counts[at(t)]; ++j) {
      int id = from.between(valid_ids ? 0 : -1, num_experts - (valid_ids ? 1 : 0));
      while (id >= 0 && taken.count(id) != 0) id = (id + 1) % num_experts;
      taken.insert(id);
      ids[at(t * top_k + j)] = id;
      // Multiples of 2^-20 up to 2,048: sums of few are exact in double and in fixed point.
      weights[at(t * top_k + j)] = from.chance(6)
                                       ? static_cast<float>(from.between(0, 2048))
                                       : static_cast<float>(from.raw<std::uint16_t>()) / 65536.0f;
    }
  }
  const std::vector<std::int32_t> ids_before = ids, counts_before = counts;
  const std::vector<float> weights_before = weights;
  std::vector<std::uint64_t> mass(at(num_experts));
  std::vector<std::uint8_t> admitted(at(num_experts));
  int distinct = -1;
  const status result =
      restrict_to_budget(ids.data(), weights.data(), counts.data(), num_tokens, top_k, num_experts,
                         k_min, budget, {mass.data(), admitted.data()}, order, &distinct);
  if (!result.ok()) {
    fuzz::require_message(result.message());
    fuzz::require(ids == ids_before && weights == weights_before && counts == counts_before,
                  "with a refusal nothing is written");
    const auto out_of_range = [&](std::int32_t id) { return id < 0 || id >= num_experts; };
    bool bad = num_tokens > 0 && ids.data() == nullptr;
    for (std::int64_t t = 0; t < num_tokens; ++t)
      for (int j = 0; j < counts[at(t)]; ++j) bad = bad || out_of_range(ids[at(t * top_k + j)]);
    fuzz::require(bad, std::string("refused, though it fits: ") + result.message());
    return;
  }
  std::set<int> core;
  std::map<int, double> wanted;
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (int j = 0; j < counts_before[at(t)]; ++j) {
      const int id = ids_before[at(t * top_k + j)];
      if (j < k_min) core.insert(id);
      wanted[id] += static_cast<double>(weights_before[at(t * top_k + j)]);
    }
  std::vector<int> others;
  for (const auto& [id, sum] : wanted)
    if (core.count(id) == 0) others.push_back(id);
  if (order == admission::gate_mass)
    std::stable_sort(others.begin(), others.end(),
                     [&](int a, int b) { return wanted[a] > wanted[b]; });
  std::set<int> allowed = core;
  for (const int id : others)
    if (static_cast<int>(allowed.size()) < budget) allowed.insert(id);
  fuzz::require(distinct == static_cast<int>(allowed.size()), "distinct");
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    int kept = 0;
    double before = 0.0, after = 0.0;
    for (int j = 0; j < counts_before[at(t)]; ++j) {
      const int id = ids_before[at(t * top_k + j)];
      before += static_cast<double>(weights_before[at(t * top_k + j)]);
      if (allowed.count(id) == 0) continue;
      fuzz::require(ids[at(t * top_k + kept)] == id, "the experts kept, in order");
      after += static_cast<double>(weights_before[at(t * top_k + j)]);
      ++kept;
    }
    fuzz::require(counts[at(t)] == kept, "k_t after the budget");
    double sum = 0.0;
    for (int j = 0; j < top_k; ++j) {
      sum += static_cast<double>(weights[at(t * top_k + j)]);
      if (j >= kept)
        fuzz::require(ids[at(t * top_k + j)] == -1 && weights[at(t * top_k + j)] == 0.0f, "fill");
    }
    if (after > 0.0)
      fuzz::require(std::abs(sum - before) <= 1e-6 * before, "the token's weights keep their sum");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::bytes from(data, size);
  switch (from.between(0, 9)) {
    case 0:
    case 1:
      permute_and_compare<std::int32_t>(from);
      break;
    case 2:
      permute_and_compare<std::int64_t>(from);
      break;
    case 3:
      permute_and_compare<std::int16_t>(from);
      break;
    case 4:
      permute_and_compare<std::uint16_t>(from);
      break;
    case 5:
      combine_and_compare<float, float>(from);
      break;
    case 6:
      combine_and_compare<bfloat16, float>(from);
      break;
    case 7:
      combine_and_compare<float16, bfloat16>(from);
      break;
    default:
      restrict_and_compare(from);
  }
  return 0;
}

// Routes one seeded input set over many shapes, gatings, policies and types, and prints a hash of
// all outputs, bit by bit. Every build on every machine must print the same: see CMakeLists.txt.
//
// The inputs are made of integers only, so that they are the same before any routing happens.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "adaptive_k/adaptive_k.hpp"

#if defined(ADAPTIVE_K_FLUSH_TO_ZERO)
#include <xmmintrin.h>
#endif

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the program is about it

// FNV-1a over 64 bits: not strong, but a single changed bit changes it.
class output_hash {
 public:
  void add(std::uint64_t value) {
    for (int byte = 0; byte < 8; ++byte) {
      state_ = (state_ ^ (value & 0xFFu)) * 0x100000001B3u;
      value >>= 8;
    }
  }
  void add_bits(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    add(bits);
  }
  void add_bits(float16 value) { add(value.bits); }
  void add_bits(bfloat16 value) { add(value.bits); }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xCBF29CE484222325u;
};

// splitmix64
class generator {
 public:
  explicit generator(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int below(int bound) { return static_cast<int>(next() % static_cast<std::uint64_t>(bound)); }

 private:
  std::uint64_t state_;
};

template <class T>
T from_bits(std::uint32_t bits);
template <>
float from_bits<float>(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
float16 from_bits<float16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}
template <>
bfloat16 from_bits<bfloat16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}

// Rows of several kinds: plain ones, peaked ones, ties, any bit pattern at all, nothing finite.
template <class T>
void fill_row(generator& random, T* row, int num_experts) {
  const int kind = random.below(16);
  const int peak = random.below(num_experts);
  for (int e = 0; e < num_experts; ++e) {
    // A sum of four is roughly bell-shaped; at most 11 bits, so exact in every type but bf16.
    int steps = -1022;
    for (int i = 0; i < 4; ++i) steps += random.below(512);
    const auto noise = static_cast<std::uint32_t>(random.next());
    float logit = static_cast<float>(steps) / 128.0f;
    if (kind == 1 || kind == 2) logit *= 8.0f;                       // confident
    if (kind == 3) logit = static_cast<float>(random.below(3) - 1);  // many ties
    if (kind == 4) logit *= 0.03125f;                                // nearly flat
    if (kind == 5 && e == peak) logit = 100.0f;                      // one winner
    if (kind == 6) logit = 0.0f;                                     // all equal
    row[e] = from_float<T>(logit);
    if (kind == 7) row[e] = from_bits<T>(noise);  // NaN, infinities, subnormals among them
    if (kind == 8 && e == peak) row[e] = from_float<T>(from_bits<float>(0x7F800000u));
    if (kind == 9 && noise % 4 == 0) row[e] = from_float<T>(from_bits<float>(0x7FC00000u));
    if (kind == 10 && noise % 4 == 0) row[e] = from_float<T>(from_bits<float>(0xFF800000u));
    if (kind == 11 && peak % 4 == 0) row[e] = from_float<T>(from_bits<float>(0xFF800000u));
  }
}

struct shape {
  int num_experts;
  int top_k;
};
// Real models' shapes, and the corners: one expert, all experts, not a power of two, the largest.
constexpr shape shapes[] = {{1, 1},    {2, 1},    {3, 3},    {8, 2},   {16, 2},  {31, 5},
                            {32, 8},   {33, 4},   {40, 8},   {60, 4},  {64, 8},  {72, 32},
                            {96, 12},  {128, 6},  {128, 8},  {160, 6}, {256, 8}, {384, 8},
                            {512, 10}, {1000, 7}, {1024, 32}};

// All models that have this shape: gating kind x renormalisation x bias x groups.
std::vector<gating> gatings_of(const shape& s, generator& random) {
  std::vector<gating> result;
  for (const gating_kind kind :
       {gating_kind::softmax, gating_kind::sigmoid, gating_kind::top_k_softmax,
        gating_kind::sqrt_softplus, gating_kind::sparsemixer}) {
    for (const bool renormalize : {false, true}) {
      for (const int variant : {0, 1, 2, 3}) {  // plain, bias, groups by top-2 sum, by maximum
        gating g;
        g.kind = kind;
        g.num_experts = s.num_experts;
        g.top_k = s.top_k;
        g.renormalize = renormalize;
        g.selection_bias = variant == 1 || variant == 2;
        if (variant >= 2) {
          g.n_group = 8;
          g.topk_group = 4;
          g.group_rank = variant == 2 ? group_score::top2_sum : group_score::maximum;
        }
        g.routed_scaling_factor = 1.0f + static_cast<float>(random.below(64)) / 32.0f;
        if (validate(g).ok()) result.push_back(g);
      }
    }
  }
  return result;
}

struct distortion_tables {
  std::vector<float> coefficients;
  std::vector<float> first_expert;
  std::vector<float> next_expert;
};

distortion_tables make_tables(const shape& s, generator& random) {
  distortion_tables tables;
  const auto value = [&random] { return static_cast<float>(random.below(2048) - 1024) / 1024.0f; };
  for (int i = 0; i < (s.top_k - 1) * distortion_ref::num_features; ++i)
    tables.coefficients.push_back(value());
  for (int i = 0; i < (s.top_k - 1) * s.num_experts; ++i) {
    tables.first_expert.push_back(value());
    tables.next_expert.push_back(value());
  }
  return tables;
}

// Every rule and every signal, with thresholds near where real tokens fall.
std::vector<k_policy> policies_of(const shape& s, const distortion_tables& tables) {
  std::vector<k_policy> result = {k_policy::full(), k_policy::fixed((s.top_k + 1) / 2)};
  result.push_back(k_policy::top_p(0.6875f, s.top_k));
  result.push_back(k_policy::score_ratio(0.375f, s.top_k));
  if (s.top_k >= 2) {
    const int middle = (s.top_k + 1) / 2;
    const std::initializer_list<signal_kind> entropies = {
        signal_kind::softmax_entropy, signal_kind::normalized_entropy, signal_kind::topk_entropy};
    for (const signal_kind kind : entropies) {
      const float threshold = kind == signal_kind::softmax_entropy ? 2.0f : 0.75f;
      result.push_back(k_policy::with_thresholds(kind, {middle, s.top_k}, {threshold}));
    }
    result.push_back(k_policy::with_thresholds(signal_kind::margin, {1, s.top_k}, {0.125f}));
    distortion_ref model;
    model.coefficients = tables.coefficients.data();
    model.first_expert = tables.first_expert.data();
    model.next_expert = tables.next_expert.data();
    model.sensitivity = 0.75f;
    model.lambda = 0.0625f;
    result.push_back(k_policy::min_distortion(model));
    result.back().mass_exponent = 0.5f;
  }
  // The powers that are taken by their own branches, and one that needs exp and log.
  for (std::size_t i = 0; i < result.size(); ++i) {
    constexpr float exponents[] = {k_policy::mass_exponent_of_model, 0.5f, 0.0f, 0.3125f, 1.0f};
    result[i].mass_exponent = exponents[i % 5];
  }
  return result;
}

template <class Logit, class Id, class Weight>
void route_and_hash(output_hash& hash, generator& random, const router& route, const gating& g,
                    std::int64_t num_tokens) {
  const auto tokens = static_cast<std::size_t>(num_tokens);
  const auto experts = static_cast<std::size_t>(g.num_experts);
  const auto slots = tokens * static_cast<std::size_t>(g.top_k);
  const std::size_t stride = experts + static_cast<std::size_t>(random.below(3));

  std::vector<Logit> logits(tokens * stride);
  for (std::size_t t = 0; t < tokens; ++t)
    fill_row(random, logits.data() + t * stride, g.num_experts);

  std::vector<float> bias(experts);
  for (float& b : bias) b = static_cast<float>(random.below(256) - 128) / 1024.0f;
  std::vector<std::uint8_t> padding(tokens);
  std::vector<std::uint8_t> k_min(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    padding[t] = random.below(8) == 0 ? 1 : 0;
    k_min[t] = static_cast<std::uint8_t>(1 + (random.below(4) == 0 ? random.below(g.top_k) : 0));
  }
  routing_extras extras;
  if (g.selection_bias) extras.routing_bias = bias.data();
  if (random.below(2) == 0) extras.padding_mask = padding.data();
  if (random.below(2) == 0) extras.k_min = k_min.data();

  std::vector<Id> ids(slots);
  std::vector<Weight> weights(slots);
  std::vector<std::int32_t> counts(tokens);
  std::vector<float> signal(tokens);
  routing_metrics metrics;
  const logits_view<Logit> view = {logits.data(), num_tokens, g.num_experts,
                                   static_cast<std::int64_t>(stride)};
  std::vector<std::uint64_t> expert_counts(experts);
  routing_output<Id, Weight> output = {ids.data(), weights.data(), counts.data(), signal.data()};
  output.expert_counts = expert_counts.data();
  const status result = route.route(0, view, output, &metrics, extras);
  if (!result.ok()) {  // a refused call has no output: the input set is wrong
    std::printf("refused: %s\n", result.message());
    std::exit(1);
  }

  for (const Id id : ids) hash.add(static_cast<std::uint64_t>(id));
  for (const Weight weight : weights) hash.add_bits(weight);
  for (const std::int32_t count : counts) hash.add(static_cast<std::uint64_t>(count));
  for (const float value : signal) hash.add_bits(value);

  hash.add(metrics.calls);
  hash.add(metrics.tokens);
  hash.add(metrics.padding_tokens);
  hash.add(metrics.expert_calls);
  hash.add(metrics.full_expert_calls);
  hash.add(metrics.nonfinite_rows);
  hash.add(metrics.distinct_experts);
  hash.add(static_cast<std::uint64_t>(metrics.signal_sum_fixed));
  hash.add_bits(metrics.signal_lowest);
  hash.add_bits(metrics.signal_highest);
  for (const std::uint64_t tokens_of_k : metrics.k_histogram) hash.add(tokens_of_k);
  for (int e = 0; e < g.num_experts; ++e) hash.add(expert_counts[static_cast<std::size_t>(e)]);
}

}  // namespace

int main() {
#if defined(ADAPTIVE_K_FLUSH_TO_ZERO)
  // What a process gets that links code built with -ffast-math: subnormals read and give zero.
  _mm_setcsr(_mm_getcsr() | 0x8040u);
#endif
  std::fprintf(stderr, "%s\n", name_of(best_instruction_set()));
  output_hash hash;
  generator random(20240607);
  std::int64_t calls = 0;
  std::int64_t tokens = 0;
  for (const shape& s : shapes) {
    const distortion_tables tables = make_tables(s, random);
    for (const gating& g : gatings_of(s, random)) {
      for (const k_policy& policy : policies_of(s, tables)) {
        router_options options;
        options.fill = static_cast<fill_id>(random.below(3));
        const router route(g, policy, options);
        const std::int64_t num_tokens = 2 + random.below(s.num_experts > 256 ? 4 : 16);
        switch (random.below(4)) {
          case 0:
            route_and_hash<float, std::int32_t, float>(hash, random, route, g, num_tokens);
            break;
          case 1:
            route_and_hash<float16, std::int64_t, float16>(hash, random, route, g, num_tokens);
            break;
          case 2:
            route_and_hash<bfloat16, std::int16_t, bfloat16>(hash, random, route, g, num_tokens);
            break;
          default:
            route_and_hash<float, std::uint16_t, bfloat16>(hash, random, route, g, num_tokens);
            break;
        }
        ++calls;
        tokens += num_tokens;
      }
    }
  }
  std::printf("%016llx (%lld calls, %lld tokens)\n", static_cast<unsigned long long>(hash.value()),
              static_cast<long long>(calls), static_cast<long long>(tokens));
  return 0;
}

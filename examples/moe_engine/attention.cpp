#include "attention.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace moe_engine {
namespace {

constexpr int query_block = 64;
constexpr std::int64_t row_block = 64;

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using strided = Eigen::Map<row_major, 0, Eigen::OuterStride<>>;
using const_strided = Eigen::Map<const row_major, 0, Eigen::OuterStride<>>;

}  // namespace

// In float throughout, as PyTorch does it.
rotary_table::rotary_table(const model_config& config, int length) {
  const int half = config.head_dim / 2;
  std::vector<float> frequency;
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    frequency.push_back(1.0f / std::pow(config.rope_theta, exponent));
  }
  for (int position = 0; position < length; ++position) {
    for (const float f : frequency) {
      const float angle = static_cast<float>(position) * f;
      cosine.push_back(std::cos(angle));
      sine.push_back(std::sin(angle));
    }
  }
}

attention_layer::attention_layer(const model_config& config, const float* qkv, const float* o)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      window_(config.sliding_window),
      qkv_(qkv, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim, config.hidden_size),
      o_(o, config.hidden_size, config.num_heads * config.head_dim) {}

void attention_layer::forward(const float* x, int num_sequences, int length,
                              const rotary_table& rotary, float* output,
                              std::vector<float>& buffer) const {
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  const std::int64_t width = qkv_.outputs();
  const std::int64_t heads_width = o_.inputs();
  buffer.resize(static_cast<std::size_t>(num_tokens * (width + heads_width)));
  float* qkv = buffer.data();                  // [T, width]
  float* attended = qkv + num_tokens * width;  // [T, num_heads * D]

  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    qkv_.multiply(x + begin * qkv_.inputs(), end - begin, qkv + begin * width);
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t at = t % length * (head_dim_ / 2);
      rotate(qkv + t * width, rotary.cosine.data() + at, rotary.sine.data() + at);
    }
  });

  const std::int64_t blocks = (length + query_block - 1) / query_block;
  parallel_for(num_sequences * num_heads_ * blocks, [&](std::int64_t task) {
    const std::int64_t sequence = task / (num_heads_ * blocks);
    const int head = static_cast<int>(task / blocks % num_heads_);
    const int first = static_cast<int>(task % blocks) * query_block;
    attend(qkv + sequence * length * width, head, first, std::min(first + query_block, length),
           attended + sequence * length * heads_width);
  });

  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    o_.multiply(attended + begin * heads_width, end - begin, output + begin * o_.outputs());
  });
}

// The queries and keys of one token, in place.
void attention_layer::rotate(float* token, const float* cosine, const float* sine) const {
  const int half = head_dim_ / 2;
  for (int head = 0; head < num_heads_ + num_kv_heads_; ++head) {
    float* low = token + head * head_dim_;
    float* high = low + half;
    for (int i = 0; i < half; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * cosine[i] - b * sine[i];
      high[i] = b * cosine[i] + a * sine[i];
    }
  }
}

// One sequence (qkv [length, width]) and one head, for a block of queries.
void attention_layer::attend(const float* qkv, int head, int first_query, int last_query,
                             float* output) const {
  const Eigen::Index width = qkv_.outputs();
  const int kv_head = head / (num_heads_ / num_kv_heads_);
  const int oldest = window_ == 0 ? 0 : std::max(0, first_query - window_ + 1);
  const int queries = last_query - first_query;
  const int keys = last_query - oldest;
  const float* kv = qkv + oldest * width;
  const const_strided q(qkv + first_query * width + head * head_dim_, queries, head_dim_,
                        Eigen::OuterStride<>(width));
  const const_strided k(kv + (num_heads_ + kv_head) * head_dim_, keys, head_dim_,
                        Eigen::OuterStride<>(width));
  const const_strided v(kv + (num_heads_ + num_kv_heads_ + kv_head) * head_dim_, keys, head_dim_,
                        Eigen::OuterStride<>(width));
  row_major weights = q * k.transpose() * (1.0f / std::sqrt(static_cast<float>(head_dim_)));
  for (int i = 0; i < queries; ++i) {
    const int query = first_query + i;
    const int begin = window_ == 0 ? 0 : std::max(0, query - window_ + 1) - oldest;
    const int visible = query + 1 - oldest - begin;
    auto row = weights.row(i);
    auto seen = row.segment(begin, visible);
    seen = (seen.array() - seen.maxCoeff()).exp();
    seen /= seen.sum();
    row.head(begin).setZero();
    row.tail(keys - begin - visible).setZero();
  }
  const Eigen::Index out_width = o_.inputs();
  strided out(output + first_query * out_width + head * head_dim_, queries, head_dim_,
              Eigen::OuterStride<>(out_width));
  out.noalias() = weights * v;
}

}  // namespace moe_engine

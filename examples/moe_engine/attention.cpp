#include "attention.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace moe_engine {
namespace {

constexpr int query_block = 64;

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using strided = Eigen::Map<row_major, 0, Eigen::OuterStride<>>;
using vector = Eigen::Map<Eigen::VectorXf>;
using const_vector = Eigen::Map<const Eigen::VectorXf>;
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
      q_(qkv, config.num_heads * config.head_dim, config.hidden_size),
      kv_(qkv + std::int64_t{config.num_heads} * config.head_dim * config.hidden_size,
          2 * config.num_kv_heads * config.head_dim, config.hidden_size),
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
      rotate(qkv + t * width, num_heads_ + num_kv_heads_, rotary.cosine.data() + at,
             rotary.sine.data() + at);
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

void attention_layer::forward_rows(const float* x, int num_sequences, int length,
                                   const rotary_table& rotary,
                                   const std::vector<std::int64_t>& rows, float* output,
                                   std::vector<float>& buffer) const {
  const std::int64_t num_tokens = std::int64_t{num_sequences} * length;
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  const std::int64_t hidden = q_.inputs();
  const std::int64_t q_width = q_.outputs();
  const std::int64_t kv_width = kv_.outputs();
  buffer.resize(
      static_cast<std::size_t>(num_tokens * kv_width + num_rows * (hidden + 2 * q_width)));
  float* kv = buffer.data();                     // [T, kv_width]
  float* gathered = kv + num_tokens * kv_width;  // [R, H]
  float* q = gathered + num_rows * hidden;       // [R, q_width]
  float* attended = q + num_rows * q_width;      // [R, q_width]
  const auto rotation = [&](std::int64_t token) { return token % length * (head_dim_ / 2); };

  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    kv_.multiply(x + begin * hidden, end - begin, kv + begin * kv_width);
    for (std::int64_t t = begin; t < end; ++t)
      rotate(kv + t * kv_width, num_kv_heads_, rotary.cosine.data() + rotation(t),
             rotary.sine.data() + rotation(t));
  });
  parallel_ranges(num_rows, row_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::copy_n(x + rows[static_cast<std::size_t>(r)] * hidden, hidden, gathered + r * hidden);
    q_.multiply(gathered + begin * hidden, end - begin, q + begin * q_width);
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t token = rows[static_cast<std::size_t>(r)];
      rotate(q + r * q_width, num_heads_, rotary.cosine.data() + rotation(token),
             rotary.sine.data() + rotation(token));
      attend_row(q + r * q_width, kv + token / length * length * kv_width,
                 static_cast<int>(token % length), attended + r * q_width);
    }
    o_.multiply(attended + begin * q_width, end - begin, output + begin * hidden);
  });
}

// One token's queries and keys, in place.
void attention_layer::rotate(float* token, int num_heads, const float* cosine,
                             const float* sine) const {
  const int half = head_dim_ / 2;
  for (int head = 0; head < num_heads; ++head) {
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

// All heads of one query (q, output [num_heads * D]) over its sequence's keys and values.
void attention_layer::attend_row(const float* q, const float* kv, int position,
                                 float* output) const {
  const Eigen::Index width = kv_.outputs();
  const int oldest = window_ == 0 ? 0 : std::max(0, position - window_ + 1);
  const int keys = position + 1 - oldest;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  thread_local std::vector<float> scores;
  scores.resize(static_cast<std::size_t>(keys));
  for (int head = 0; head < num_heads_; ++head) {
    const int kv_head = head / (num_heads_ / num_kv_heads_);
    const const_vector query(q + head * head_dim_, head_dim_);
    vector weights(scores.data(), keys);
    vector result(output + head * head_dim_, head_dim_);
    for (int i = 0; i < keys; ++i)
      weights[i] = scale * query.dot(const_vector(kv + (oldest + i) * width + kv_head * head_dim_,
                                                  head_dim_));
    const float largest = weights.maxCoeff();
    weights = (weights.array() - largest).exp();
    weights /= weights.sum();
    result.setZero();
    for (int i = 0; i < keys; ++i)
      result += weights[i] *
                const_vector(kv + (oldest + i) * width + (num_kv_heads_ + kv_head) * head_dim_,
                             head_dim_);
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

#include "attention.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel.hpp"
#include "rms_norm.hpp"

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
  const int half = config.rotary_dim / 2;
  std::vector<float> frequency;
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.rotary_dim);
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

attention_layer::attention_layer(const model_config& config, attention_weights weights)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      rotary_dim_(config.rotary_dim),
      window_(config.sliding_window),
      norm_(config.qk_norm),
      epsilon_(config.rms_norm_eps),
      weights_(std::move(weights)),
      qkv_(weights_.qkv.data(), (config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
           config.hidden_size),
      q_(weights_.qkv.data(), config.num_heads * config.head_dim, config.hidden_size),
      kv_(weights_.qkv.data() +
              std::int64_t{config.num_heads} * config.head_dim * config.hidden_size,
          2 * config.num_kv_heads * config.head_dim, config.hidden_size),
      o_(weights_.o.data(), config.hidden_size, config.num_heads * config.head_dim) {
  weights_.qkv = {};
  weights_.o = {};
}

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
      finish_queries(qkv + t * width, rotary, t % length);
      finish_keys_and_values(qkv + t * width + heads_width, rotary, t % length);
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
    project_out(attended + begin * heads_width, end - begin, output + begin * o_.outputs());
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

  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    kv_.multiply(x + begin * hidden, end - begin, kv + begin * kv_width);
    for (std::int64_t t = begin; t < end; ++t)
      finish_keys_and_values(kv + t * kv_width, rotary, t % length);
  });
  parallel_ranges(num_rows, row_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::copy_n(x + rows[static_cast<std::size_t>(r)] * hidden, hidden, gathered + r * hidden);
    q_.multiply(gathered + begin * hidden, end - begin, q + begin * q_width);
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t token = rows[static_cast<std::size_t>(r)];
      finish_queries(q + r * q_width, rotary, token % length);
      attend_row(q + r * q_width, kv + token / length * length * kv_width,
                 static_cast<int>(token % length), attended + r * q_width);
    }
    project_out(attended + begin * q_width, end - begin, output + begin * hidden);
  });
}

void attention_layer::extend(const float* x, const std::vector<token_place>& places,
                             const rotary_table& rotary, std::vector<float>* kv, float* output,
                             std::vector<float>& buffer) const {
  const auto num_tokens = static_cast<std::int64_t>(places.size());
  const std::int64_t hidden = qkv_.inputs();
  const std::int64_t width = qkv_.outputs();
  const std::int64_t q_width = q_.outputs();
  buffer.resize(static_cast<std::size_t>(num_tokens * (width + q_width)));
  float* qkv = buffer.data();                  // [T, width]
  float* attended = qkv + num_tokens * width;  // [T, q_width]
  const auto place = [&](std::int64_t t) { return places[static_cast<std::size_t>(t)]; };

  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    qkv_.multiply(x + begin * hidden, end - begin, qkv + begin * width);
    for (std::int64_t t = begin; t < end; ++t) {
      float* own = qkv + t * width;
      finish_queries(own, rotary, place(t).position);
      finish_keys_and_values(own + q_width, rotary, place(t).position);
      std::copy_n(
          own + q_width, kv_width(),
          kv[place(t).sequence].data() + static_cast<std::int64_t>(place(t).position) * kv_width());
    }
  });
  // Only now: a token attends to others of this call.
  parallel_ranges(num_tokens, row_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      attend_row(qkv + t * width, kv[place(t).sequence].data(), place(t).position,
                 attended + t * q_width);
    project_out(attended + begin * q_width, end - begin, output + begin * hidden);
  });
}

// One token's queries [num_heads * D], as the projection made them.
void attention_layer::finish_queries(float* q, const rotary_table& rotary,
                                     std::int64_t position) const {
  const int width = num_heads_ * head_dim_;
  if (!weights_.qkv_bias.empty()) vector(q, width) += const_vector(weights_.qkv_bias.data(), width);
  normalize(q, num_heads_, weights_.q_norm);
  rotate(q, num_heads_, rotary, position);
}

// Its keys and values [2 * num_kv_heads * D], likewise.
void attention_layer::finish_keys_and_values(float* kv, const rotary_table& rotary,
                                             std::int64_t position) const {
  const int width = 2 * num_kv_heads_ * head_dim_;
  if (!weights_.qkv_bias.empty())
    vector(kv, width) += const_vector(weights_.qkv_bias.data() + num_heads_ * head_dim_, width);
  normalize(kv, num_kv_heads_, weights_.k_norm);
  rotate(kv, num_kv_heads_, rotary, position);
}

void attention_layer::normalize(float* heads, int num_heads,
                                const std::vector<float>& weight) const {
  if (norm_ == query_key_norm::all_heads)
    rms_norm_row(heads, weight.data(), num_heads * head_dim_, epsilon_, heads);
  if (norm_ == query_key_norm::each_head)
    for (int head = 0; head < num_heads; ++head)
      rms_norm_row(heads + head * head_dim_, weight.data(), head_dim_, epsilon_,
                   heads + head * head_dim_);
}

void attention_layer::rotate(float* heads, int num_heads, const rotary_table& rotary,
                             std::int64_t position) const {
  const int half = rotary_dim_ / 2;
  const float* cosine = rotary.cosine.data() + position * half;
  const float* sine = rotary.sine.data() + position * half;
  for (int head = 0; head < num_heads; ++head) {
    float* low = heads + head * head_dim_;
    float* high = low + half;
    for (int i = 0; i < half; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * cosine[i] - b * sine[i];
      high[i] = b * cosine[i] + a * sine[i];
    }
  }
}

void attention_layer::project_out(const float* attended, std::int64_t rows, float* output) const {
  o_.multiply(attended, rows, output);
  if (weights_.o_bias.empty()) return;
  const const_vector bias(weights_.o_bias.data(), o_.outputs());
  for (std::int64_t row = 0; row < rows; ++row)
    vector(output + row * o_.outputs(), o_.outputs()) += bias;
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

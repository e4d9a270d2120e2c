#include "experts.hpp"

#include <algorithm>
#include <cstring>

namespace adaptive_k_ggml {

void* scratch::get(std::size_t bytes) {
  constexpr std::size_t alignment = 64;
  if (bytes + alignment > bytes_) {
    memory_ = nullptr;  // before the larger one: it may be most of a machine's memory
    bytes_ = 0;
    const std::size_t wanted = bytes + bytes / 4 + alignment;
    memory_.reset(new unsigned char[wanted]);
    bytes_ = wanted;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  return memory_.get() + (alignment - address % alignment) % alignment;
}

void expert_runner::begin() {
  num_tensors_ = 0;
  nodes_.clear();
  renamed_.clear();
}

ggml_tensor* expert_runner::make(ggml_op op, ggml_type type, std::int64_t ne0, std::int64_t ne1,
                                 std::int64_t ne2, void* data) {
  if (num_tensors_ == tensors_.size()) tensors_.emplace_back();
  ggml_tensor* const t = &tensors_[num_tensors_++];
  *t = {};
  t->type = type;
  t->op = op;
  t->flags = GGML_TENSOR_FLAG_COMPUTE;
  t->ne[0] = ne0;
  t->ne[1] = ne1;
  t->ne[2] = ne2;
  t->ne[3] = 1;
  t->nb[0] = ggml_type_size(type);
  t->nb[1] = ggml_row_size(type, ne0);
  t->nb[2] = t->nb[1] * static_cast<std::size_t>(ne1);
  t->nb[3] = t->nb[2] * static_cast<std::size_t>(ne2);
  t->data = data;
  return t;
}

ggml_tensor* expert_runner::look_at(ggml_tensor* source, std::int64_t ne0, std::int64_t ne1,
                                    std::size_t nb1, std::size_t offset) {
  ggml_tensor* const view =
      make(GGML_OP_NONE, source->type, ne0, ne1, 1, static_cast<char*>(source->data) + offset);
  view->nb[1] = nb1;
  view->nb[2] = view->nb[3] = nb1 * static_cast<std::size_t>(ne1);
  return view;
}

ggml_tensor* expert_runner::replacement(ggml_tensor* source) const {
  for (const renamed& pair : renamed_)
    if (pair.old == source) return pair.now;
  return source;
}

ggml_status expert_runner::compute() {
  if (nodes_.empty()) return GGML_STATUS_SUCCESS;
  if (nodes_.size() > graph_size_) {
    graph_size_ = 2 * nodes_.size() + 64;
    const ggml_init_params params = {
        ggml_graph_overhead_custom(graph_size_, false) + ggml_tensor_overhead(), nullptr, true};
    context_.reset(ggml_init(params));
    graph_ = context_ ? ggml_new_graph_custom(context_.get(), graph_size_, false) : nullptr;
    if (graph_ == nullptr) {
      graph_size_ = 0;
      return GGML_STATUS_ALLOC_FAILED;
    }
  }
  ggml_graph_clear(graph_);
  for (ggml_tensor* node : nodes_) ggml_graph_add_node(graph_, node);
  return ggml_backend_graph_compute(cpu_, graph_);
}

ggml_status expert_runner::run(ggml_tensor* const* nodes, int num_nodes, ggml_tensor* logits) {
  begin();
  for (int i = 0; i < num_nodes; ++i) {
    add(nodes[i]);
    if (nodes[i] != logits) continue;
    kept_logits_ = logits_memory_.get(ggml_nbytes(logits));
    ggml_tensor* const copy =
        make(GGML_OP_DUP, GGML_TYPE_F32, logits->ne[0], logits->ne[1], 1, kept_logits_);
    copy->src[0] = logits;
    add(copy);
  }
  return compute();
}

/// The nodes of the experts with `slots` slots for each of `tokens` tokens. Their memory is the
/// graph's own, of which they take the first part.
void expert_runner::add_slots(const moe_layer& layer, std::int64_t slots, std::int64_t tokens) {
  for (const slot_node& slot : layer.slots) {
    ggml_tensor* const old = slot.node;
    ggml_tensor* const now = make(old->op, old->type, old->ne[0], slots, tokens, old->data);
    std::memcpy(now->op_params, old->op_params, sizeof now->op_params);
    std::memcpy(now->name, old->name, sizeof now->name);
    for (int i = 0; i < GGML_MAX_SRC; ++i)
      now->src[i] = old->src[i] != nullptr ? replacement(old->src[i]) : nullptr;
    if (old->op == GGML_OP_VIEW || old->op == GGML_OP_RESHAPE) {  // a part of each row
      const ggml_tensor* const whole = now->src[0];
      const auto offset = static_cast<char*>(old->data) - static_cast<char*>(old->src[0]->data);
      now->data = static_cast<char*>(whole->data) + offset;
      std::copy(whole->nb + 1, whole->nb + GGML_MAX_DIMS, now->nb + 1);
    } else {
      add(now);
    }
    renamed_.push_back({old, now});
  }
}

/// Puts `sum` [n, T] where the graph expects it.
void expert_runner::write_output(const moe_layer& layer, ggml_tensor* sum) {
  if (sum->data == layer.output->data) return;
  ggml_tensor* const copy = make(GGML_OP_DUP, GGML_TYPE_F32, layer.output->ne[0],
                                 layer.output->ne[1], 1, layer.output->data);
  copy->src[0] = sum;
  add(copy);
}

ggml_status expert_runner::run_same_count(const moe_layer& layer, int count, const float* factors) {
  const int top_k = layer.top_k();
  const int num_tokens = layer.num_tokens();
  begin();
  auto* const weights = weights_memory_.get<float>(static_cast<std::size_t>(count) *
                                                   static_cast<std::size_t>(num_tokens));
  const ggml_tensor* const own = layer.weights;
  for (int t = 0; t < num_tokens; ++t)
    for (int j = 0; j < count; ++j) {
      const char* const at = static_cast<const char*>(own->data) +
                             static_cast<std::size_t>(j) * own->nb[1] +
                             static_cast<std::size_t>(t) * own->nb[2];
      weights[t * count + j] = *reinterpret_cast<const float*>(at) * factors[t];
    }
  ggml_tensor* const ids = make(GGML_OP_NONE, GGML_TYPE_I32, count, num_tokens, 1, layer.ids->data);
  ids->nb[1] = layer.ids->nb[1];
  renamed_.push_back({layer.ids, ids});
  renamed_.push_back(
      {layer.weights, make(GGML_OP_NONE, GGML_TYPE_F32, 1, count, num_tokens, weights)});
  add_slots(layer, count, num_tokens);

  // The graph's own partial sums, as far as they are needed, each where it was to be.
  ggml_tensor* const rows = replacement(layer.weighted);
  std::vector<ggml_tensor*> partial;
  for (ggml_tensor* t = layer.output; static_cast<int>(partial.size()) < top_k - 1; t = t->src[0])
    partial.push_back(t);
  std::reverse(partial.begin(), partial.end());
  const std::int64_t width = rows->ne[0];
  ggml_tensor* sum = look_at(rows, width, num_tokens, rows->nb[2], 0);
  for (int j = 1; j < count; ++j) {
    ggml_tensor* const next = make(GGML_OP_ADD, GGML_TYPE_F32, width, num_tokens, 1,
                                   partial[static_cast<std::size_t>(j) - 1]->data);
    next->src[0] = sum;
    next->src[1] =
        look_at(rows, width, num_tokens, rows->nb[2], static_cast<std::size_t>(j) * rows->nb[1]);
    add(next);
    sum = next;
  }
  write_output(layer, sum);
  return compute();
}

/// Tokens in the order of their counts, the largest first; row r of rank j is that of the token at
/// place r. So the tokens that have a rank j are the first ones, and a sum over ranks adds rows
/// that lie one behind the other.
ggml_status expert_runner::run_rows(const moe_layer& layer, const std::int32_t* counts,
                                    const float* factors) {
  const int top_k = layer.top_k();
  const int num_tokens = layer.num_tokens();
  begin();
  std::vector<std::int32_t> tokens_with(static_cast<std::size_t>(top_k) + 1, 0);  // rank j or more
  std::size_t num_rows = 0;
  for (int t = 0; t < num_tokens; ++t) {
    num_rows += static_cast<std::size_t>(counts[t]);
    for (int j = 0; j < counts[t]; ++j) ++tokens_with[static_cast<std::size_t>(j)];
  }
  auto* const places =
      ids_memory_.get<std::int32_t>(2 * num_rows + static_cast<std::size_t>(num_tokens));
  std::int32_t* const row_ids = places + num_tokens;
  std::int32_t* const row_tokens = row_ids + num_rows;
  auto* const row_weights = weights_memory_.get<float>(num_rows);
  std::vector<std::int32_t> next(tokens_with.size(), 0);
  for (int t = 0; t < num_tokens; ++t) {
    const auto k = static_cast<std::size_t>(counts[t]);  // behind those with more
    places[t] = tokens_with[k] + next[k]++;
  }
  std::size_t rank_begin = 0;
  for (int j = 0; j < top_k; ++j) {
    for (int t = 0; t < num_tokens; ++t) {
      if (counts[t] <= j) continue;
      const auto rank = static_cast<std::size_t>(j), token = static_cast<std::size_t>(t);
      const std::size_t row = rank_begin + static_cast<std::size_t>(places[t]);
      const char* const id = static_cast<const char*>(layer.ids->data) + rank * layer.ids->nb[0] +
                             token * layer.ids->nb[1];
      const char* const weight = static_cast<const char*>(layer.weights->data) +
                                 rank * layer.weights->nb[1] + token * layer.weights->nb[2];
      row_ids[row] = *reinterpret_cast<const std::int32_t*>(id);
      row_weights[row] = *reinterpret_cast<const float*>(weight) * factors[t];
      row_tokens[row] = t;
    }
    rank_begin += static_cast<std::size_t>(tokens_with[static_cast<std::size_t>(j)]);
  }

  const auto rows = static_cast<std::int64_t>(num_rows);
  const std::int64_t width = layer.input->ne[0];
  ggml_tensor* const input =
      make(GGML_OP_GET_ROWS, GGML_TYPE_F32, width, rows, 1,
           input_memory_.get(num_rows * ggml_row_size(GGML_TYPE_F32, width)));
  input->src[0] = look_at(layer.input, width, num_tokens, layer.input->nb[2], 0);
  input->src[1] = make(GGML_OP_NONE, GGML_TYPE_I32, rows, 1, 1, row_tokens);
  add(input);
  renamed_.push_back({layer.input, make(GGML_OP_NONE, GGML_TYPE_F32, width, 1, rows, input->data)});
  renamed_.push_back({layer.ids, make(GGML_OP_NONE, GGML_TYPE_I32, 1, rows, 1, row_ids)});
  renamed_.push_back({layer.weights, make(GGML_OP_NONE, GGML_TYPE_F32, 1, 1, rows, row_weights)});
  add_slots(layer, 1, rows);

  ggml_tensor* const out = replacement(layer.weighted);
  const std::size_t row_bytes = out->nb[2];
  ggml_tensor* const sums = look_at(out, out->ne[0], num_tokens, row_bytes, 0);
  std::size_t offset = row_bytes * static_cast<std::size_t>(num_tokens);
  for (int j = 1; j < top_k; ++j) {
    const std::int64_t number = tokens_with[static_cast<std::size_t>(j)];
    if (number == 0) break;
    ggml_tensor* const added = make(GGML_OP_ADD, GGML_TYPE_F32, out->ne[0], number, 1, out->data);
    added->src[0] = look_at(out, out->ne[0], number, row_bytes, 0);
    added->src[1] = look_at(out, out->ne[0], number, row_bytes, offset);
    add(added);
    offset += row_bytes * static_cast<std::size_t>(number);
  }
  // Back into the order of tokens. The output may lie where the rows are.
  const auto* const begin_of_rows = static_cast<const char*>(out->data);
  const auto* const output = static_cast<const char*>(layer.output->data);
  const bool overlaps = output < begin_of_rows + num_rows * row_bytes &&
                        begin_of_rows < output + ggml_nbytes(layer.output);
  void* const target =
      overlaps ? output_memory_.get(ggml_nbytes(layer.output)) : layer.output->data;
  ggml_tensor* const ordered =
      make(GGML_OP_GET_ROWS, GGML_TYPE_F32, out->ne[0], num_tokens, 1, target);
  ordered->src[0] = sums;
  ordered->src[1] = make(GGML_OP_NONE, GGML_TYPE_I32, num_tokens, 1, 1, places);
  add(ordered);
  write_output(layer, ordered);
  return compute();
}

ggml_status expert_runner::run_experts(const moe_layer& layer, ggml_tensor* const* nodes,
                                       const std::int32_t* counts, const float* factors) {
  const int num_tokens = layer.num_tokens();
  const bool same = std::all_of(counts, counts + num_tokens,
                                [&](std::int32_t count) { return count == counts[0]; });
  if (!same) return run_rows(layer, counts, factors);
  if (counts[0] == layer.top_k()) return run(nodes + layer.first, layer.end - layer.first);
  return run_same_count(layer, counts[0], factors);
}

}  // namespace adaptive_k_ggml

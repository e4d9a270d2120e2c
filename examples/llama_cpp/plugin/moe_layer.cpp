#include "moe_layer.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

#include "ggml-backend.h"

namespace adaptive_k_ggml {

namespace {

using std::string;

bool has_prefix(const char* text, const char* prefix) {
  return std::strncmp(text, prefix, std::strlen(prefix)) == 0;
}

bool is_moe_name(const char* name) {
  return has_prefix(name, "ffn_moe_");
}
bool is_output_name(const char* name) {
  return has_prefix(name, "ffn_moe_out");
}

/// Names that ggml makes up: none, "node_7", or that of what a view looks at.
bool is_unnamed(const char* name) {
  return name[0] == '\0' || name[0] == ' ' || has_prefix(name, "node_");
}

bool is_view(ggml_op op) {
  return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
         op == GGML_OP_TRANSPOSE;
}

bool reads_moe(const ggml_tensor* node, int depth) {
  for (const ggml_tensor* source : node->src) {
    if (source == nullptr || source->op == GGML_OP_NONE) continue;
    if (is_moe_name(source->name)) {
      if (!is_output_name(source->name)) return true;
    } else if (is_unnamed(source->name) && depth > 0 && reads_moe(source, depth - 1)) {
      return true;
    }
  }
  return false;
}

/// The last step of a sum over slots may carry a name that the model's own code gave it.
bool adds_a_slot(const ggml_tensor* node) {
  return node->op == GGML_OP_ADD && node->src[1] != nullptr && node->src[1]->op == GGML_OP_VIEW &&
         node->src[1]->view_src != nullptr && is_moe_name(node->src[1]->view_src->name) &&
         !is_output_name(node->src[1]->view_src->name);
}

ggml_tensor* without_views(ggml_tensor* t) {
  while (t != nullptr &&
         (t->op == GGML_OP_RESHAPE || t->op == GGML_OP_VIEW || t->op == GGML_OP_CONT) &&
         t->src[0] != nullptr && ggml_nelements(t->src[0]) == ggml_nelements(t))
    t = t->src[0];
  return t;
}

float float_param(const ggml_tensor* t, int index) {
  float value;
  std::memcpy(&value, t->op_params + index, sizeof value);
  return value;
}

string op_name(const ggml_tensor* t) {
  return t == nullptr ? "nothing" : ggml_op_desc(t);
}

bool on_host(const ggml_tensor* t) {
  const ggml_backend_buffer_t buffer = t->view_src != nullptr ? t->view_src->buffer : t->buffer;
  return t->data != nullptr && (buffer == nullptr || ggml_backend_buffer_is_host(buffer));
}

/// What the router's scores are made of.
struct scores {
  adaptive_k::gating_kind kind = adaptive_k::gating_kind::softmax;
  ggml_tensor* logits = nullptr;
  bool are_logits = false;  ///< of which only the chosen ones get a softmax
};

string read_scores(ggml_tensor* probs, scores& result) {
  using adaptive_k::gating_kind;
  if (probs->op == GGML_OP_SOFT_MAX) {
    if (float_param(probs, 0) != 1.0f || float_param(probs, 1) != 0.0f || probs->src[1] != nullptr)
      return "a softmax with a scale or a mask";
    result = {gating_kind::softmax, probs->src[0], false};
  } else if (probs->op == GGML_OP_UNARY && ggml_get_unary_op(probs) == GGML_UNARY_OP_SIGMOID) {
    result = {gating_kind::sigmoid, probs->src[0], false};
  } else if (probs->op == GGML_OP_SQRT && probs->src[0]->op == GGML_OP_UNARY &&
             ggml_get_unary_op(probs->src[0]) == GGML_UNARY_OP_SOFTPLUS) {
    result = {gating_kind::sqrt_softplus, probs->src[0]->src[0], false};
  } else if (probs->op == GGML_OP_MUL_MAT || probs->op == GGML_OP_ADD) {
    result = {gating_kind::top_k_softmax, probs, true};
  } else {
    return "scores by " + op_name(probs);
  }
  return "";
}

/// From the ids back to the scores: selection, groups, bias.
string read_selection(moe_layer& layer, ggml_tensor*& probs) {
  ggml_tensor* const ids = layer.ids;
  if (ids->op != GGML_OP_VIEW || ids->src[0] == nullptr || ids->src[0]->op != GGML_OP_ARGSORT ||
      ids->view_offs != 0)
    return "ids by " + op_name(ids) + ", expected the head of an ARGSORT";
  ggml_tensor* const order = ids->src[0];
  if (order->op_params[0] != GGML_SORT_ORDER_DESC) return "an ascending order of experts";
  ggml_tensor* value = without_views(order->src[0]);
  if (value->op == GGML_OP_SET_ROWS) {  // -inf outside of the best groups
    ggml_tensor* const rows = value->src[0];
    ggml_tensor* const groups = value->src[1];
    if (rows == nullptr || rows->op != GGML_OP_GET_ROWS || groups == nullptr ||
        rows->src[1] != groups || rows->src[0]->ne[0] * rows->src[0]->ne[1] != order->ne[0])
      return "groups of an unknown form";
    layer.model.n_group = static_cast<int>(rows->src[0]->ne[1]);
    layer.model.topk_group = static_cast<int>(groups->ne[0]);
    layer.model.group_rank = adaptive_k::group_score::top2_sum;
    value = without_views(rows->src[0]);
  }
  if (value->op == GGML_OP_ADD && ggml_nelements(value->src[1]) == order->ne[0] &&
      value->src[1]->op == GGML_OP_NONE && value->src[0]->op != GGML_OP_MUL_MAT) {
    if (value->src[1]->type != GGML_TYPE_F32 || !on_host(value->src[1]))
      return "a selection bias that is not F32 in host memory";
    layer.bias = static_cast<const float*>(value->src[1]->data);
    layer.model.selection_bias = true;
    value = without_views(value->src[0]);
  }
  probs = value;
  return "";
}

/// From the weights back to the scores of the chosen experts: scale, normalisation, softmax.
string read_weights(const moe_layer& layer, const ggml_tensor* probs, bool are_logits,
                    adaptive_k::gating& model) {
  ggml_tensor* t = without_views(layer.weights);
  model.renormalize = false;
  bool softmax = false;
  for (;;) {
    if (t->op == GGML_OP_SCALE) {
      if (float_param(t, 1) != 0.0f) return "weights with an offset";
      model.routed_scaling_factor *= float_param(t, 0);
    } else if (t->op == GGML_OP_DIV) {
      const ggml_tensor* sum = t->src[1];
      if (sum->op == GGML_OP_CLAMP) sum = sum->src[0];
      if (sum->op != GGML_OP_SUM_ROWS || without_views(sum->src[0]) != without_views(t->src[0]))
        return "weights divided by " + op_name(sum);
      model.renormalize = true;
    } else if (t->op == GGML_OP_SOFT_MAX && are_logits && t->src[1] == nullptr) {
      softmax = true;
    } else {
      break;
    }
    t = without_views(t->src[0]);
  }
  if (t->op != GGML_OP_GET_ROWS || t->src[1] != layer.ids || without_views(t->src[0]) != probs)
    return "weights by " + op_name(t) + ", expected the scores of the chosen experts";
  if (softmax != are_logits) return "weights that are logits";
  return "";
}

string read_gating(moe_layer& layer) {
  ggml_tensor* probs = nullptr;
  layer.model = {};
  if (string why = read_selection(layer, probs); !why.empty()) return why;
  scores found;
  if (string why = read_scores(probs, found); !why.empty()) return why;
  layer.logits = found.logits;
  layer.model.kind = found.kind;
  layer.model.num_experts = static_cast<int>(layer.logits->ne[0]);
  layer.model.top_k = layer.top_k();
  if (string why = read_weights(layer, probs, found.are_logits, layer.model); !why.empty())
    return why;
  ggml_tensor* product = layer.logits;
  if (product->op == GGML_OP_ADD) product = product->src[0];  // a router with a bias of its own
  layer.router = product->op == GGML_OP_MUL_MAT ? product->src[0] : nullptr;
  if (layer.router == nullptr)
    return "logits by " + op_name(product) + " (" + string(product->name) +
           "): the router runs on another device";
  if (layer.logits->type != GGML_TYPE_F32 || layer.logits->ne[1] != layer.ids->ne[1] ||
      !ggml_is_contiguous(layer.logits))
    return "logits that are not one F32 row a token";
  return "";
}

bool is_elementwise(const ggml_tensor* t) {
  switch (t->op) {
    case GGML_OP_UNARY:
    case GGML_OP_GLU:
    case GGML_OP_ADD:
    case GGML_OP_SUB:
    case GGML_OP_MUL:
    case GGML_OP_DIV:
    case GGML_OP_SQR:
    case GGML_OP_SQRT:
    case GGML_OP_CLAMP:
    case GGML_OP_SCALE:
      return true;
    default:
      return false;
  }
}

/// Reads the nodes of the experts one after another.
class expert_reader {
 public:
  explicit expert_reader(moe_layer& layer) : layer_(layer) {}

  /// "" where the node is understood; `done` after the last.
  string read(ggml_tensor* node, bool& done) {
    if (node->op == GGML_OP_MUL_MAT_ID) return product(node);
    if (const int slot = slot_of(node); slot >= 0) {
      views_[node] = slot;
      return "";
    }
    const bool reads_slots = std::any_of(
        node->src, node->src + GGML_MAX_SRC,
        [&](const ggml_tensor* source) { return source != nullptr && is_slot(source); });
    if (node->op == GGML_OP_ADD_ID && reads_slots) {
      if (node->src[2] != layer_.ids) return "two choices of experts";
      return add_slot_node(node, node_role::product);
    }
    if (node->op == GGML_OP_ADD && is_sum(node)) return sum(node, done);
    if (!reads_slots) {
      if (is_view(node->op) || node->op == GGML_OP_NONE) return "";
      return op_name(node) + " (" + node->name + ") among the experts";
    }
    if (is_view(node->op) || is_elementwise(node)) return elementwise(node);
    return op_name(node) + " (" + node->name + ") of experts' outputs";
  }

 private:
  bool is_slot(const ggml_tensor* t) const {
    return std::any_of(layer_.slots.begin(), layer_.slots.end(),
                       [t](const slot_node& slot) { return slot.node == t; });
  }
  bool has_slots(const ggml_tensor* t) const {
    return t->ne[1] == layer_.ids->ne[0] && t->ne[2] == layer_.ids->ne[1] && t->ne[3] == 1;
  }

  string product(ggml_tensor* node) {
    if (node->src[2] != layer_.ids) return "two choices of experts";
    ggml_tensor* const input = node->src[1];
    if (!is_slot(input)) {
      if (layer_.input == nullptr) layer_.input = input;
      if (input != layer_.input) return "products of two inputs";
      if (input->ne[1] != 1 || input->ne[2] != layer_.ids->ne[1] || input->ne[3] != 1 ||
          input->type != GGML_TYPE_F32 || !ggml_is_contiguous(input))
        return "an input that is not one F32 row a token";
    }
    return add_slot_node(node, node_role::product);
  }

  string elementwise(ggml_tensor* node) {
    for (ggml_tensor* source : node->src) {
      if (source == nullptr || is_slot(source)) continue;
      const bool is_weight = node->op == GGML_OP_MUL && source == node->src[1] &&
                             source->ne[0] == 1 && has_slots(source);
      if (is_weight && layer_.weights == nullptr)
        layer_.weights = source;
      else if (source->ne[1] != 1 || source->ne[2] != 1 || source->ne[3] != 1)
        return op_name(node) + " (" + node->name + ") of experts' outputs and " + source->name;
    }
    return add_slot_node(node, node_role::elementwise);
  }

  string add_slot_node(ggml_tensor* node, node_role role) {
    if (!has_slots(node) || node->type != GGML_TYPE_F32)
      return string(node->name) + " of another shape";
    if (!is_view(node->op) && !ggml_is_contiguous(node)) return string(node->name) + " with gaps";
    if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0)
      return string(node->name) + ", which is an output of the graph";
    layer_.slots.push_back({node, role});
    return "";
  }

  /// Which slot of the last node's output a view looks at, all tokens of it; -1: it is no such
  /// view.
  int slot_of(const ggml_tensor* node) const {
    if (node->op != GGML_OP_VIEW || layer_.slots.empty()) return -1;
    const ggml_tensor* const last = layer_.slots.back().node;
    if (node->src[0] != last || node->ne[0] != last->ne[0] || node->ne[1] != last->ne[2] ||
        node->ne[2] != 1 || node->nb[1] != last->nb[2] || node->view_offs % last->nb[1] != 0)
      return -1;
    return static_cast<int>(node->view_offs / last->nb[1]);
  }

  bool is_sum(const ggml_tensor* node) const { return views_.count(node->src[1]) != 0; }

  /// ((slot 0 + slot 1) + slot 2) ...
  string sum(ggml_tensor* node, bool& done) {
    const int added = views_.at(node->src[1]);
    const auto first = views_.find(node->src[0]);
    const bool follows =
        summed_ == 0 ? first != views_.end() && first->second == 0 : node->src[0] == layer_.output;
    if (!follows || added != summed_ + 1) return "a sum of slots in another order";
    summed_ = added;
    layer_.output = node;
    layer_.weighted = layer_.slots.back().node;
    done = summed_ + 1 == layer_.top_k();
    if (!done && (node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) return "a partial sum as output";
    return "";
  }

  moe_layer& layer_;
  std::map<const ggml_tensor*, int> views_;
  int summed_ = 0;
};

}  // namespace

bool belongs_to_moe(const ggml_tensor* node) {
  if (is_view(node->op) || node->op == GGML_OP_NONE) return true;
  if (is_moe_name(node->name) || adds_a_slot(node)) return true;
  constexpr int depth = 6;  // of the nodes without names that groups take
  return is_unnamed(node->name) && reads_moe(node, depth);
}

int layer_number(const ggml_tensor* node) {
  const char* const dash = std::strrchr(node->name, '-');
  if (dash == nullptr || std::isdigit(static_cast<unsigned char>(dash[1])) == 0) return -1;
  return std::atoi(dash + 1);
}

int find_experts(ggml_tensor* const* nodes, int num_nodes, int from) {
  while (from < num_nodes && nodes[from]->op != GGML_OP_MUL_MAT_ID) ++from;
  return from;
}

string read_layer(ggml_tensor* const* nodes, int num_nodes, int first, moe_layer& layer) {
  layer = {};
  layer.first = first;
  layer.ids = nodes[first]->src[2];
  layer.number = layer_number(nodes[first]);
  if (layer.ids == nullptr || layer.ids->type != GGML_TYPE_I32 || layer.ids->ne[2] != 1)
    return "ids that are not one I32 row a token";
  expert_reader reader(layer);
  bool done = false;
  int at = first;
  for (; at < num_nodes && !done; ++at)
    if (string why = reader.read(nodes[at], done); !why.empty()) return why;
  if (!done)
    return "no sum over " + std::to_string(layer.top_k()) + " experts in this part of the graph";
  layer.end = at;
  if (layer.weights == nullptr) return "experts without weights";
  if (layer.input == nullptr) return "experts without an input";
  const auto is_later = [&](const ggml_tensor* t) {
    return std::find(nodes + first, nodes + layer.end, t) != nodes + layer.end;
  };
  if (is_later(without_views(layer.weights)) || is_later(layer.weights))
    return "weights that are computed after the experts";
  if (string why = read_gating(layer); !why.empty()) return why;
  return "";
}

}  // namespace adaptive_k_ggml

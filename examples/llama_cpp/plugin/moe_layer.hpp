// Finds a Mixture-of-Experts layer among the nodes of a llama.cpp graph, and reads its gating.
#pragma once

#include <string>
#include <vector>

#include "adaptive_k/core/gating.hpp"
#include "ggml.h"

namespace adaptive_k_ggml {

/// Whether a node is one of those that llama.cpp makes for routed experts ("ffn_moe_*"): what the
/// backend claims of a graph. Looks at names, and for nodes without one at what they read.
bool belongs_to_moe(const ggml_tensor* node);

/// The number behind the last '-' of a name as llama.cpp gives it, such as 7 of "ffn_moe_up-7"; -1
/// where there is none.
int layer_number(const ggml_tensor* node);

/// How a node of the expert part reads and writes slots.
enum class node_role {
  product,     ///< MUL_MAT_ID or ADD_ID: reads the ids
  elementwise  ///< or a view of a part: every slot for itself
};

/// A node whose output is [n, K0, T]: one row for each slot of each token.
struct slot_node {
  ggml_tensor* node;
  node_role role;
};

/// One layer. Tensors are the graph's own.
struct moe_layer {
  adaptive_k::gating model;         ///< as the nodes say
  const float* bias = nullptr;      ///< [E], added for selection, or null
  ggml_tensor* router = nullptr;    ///< [n, E], the router's matrix, which names the layer
  ggml_tensor* logits = nullptr;    ///< [E, T]
  ggml_tensor* ids = nullptr;       ///< [K0, T], best first
  ggml_tensor* weights = nullptr;   ///< [1, K0, T]
  ggml_tensor* input = nullptr;     ///< [n, 1, T], what the experts read
  ggml_tensor* weighted = nullptr;  ///< [n, K0, T], the last of `slots`
  ggml_tensor* output = nullptr;    ///< [n, T], the sum over slots
  std::vector<slot_node> slots;     ///< in the graph's order
  int first = 0;                    ///< nodes first to end - 1 are experts
  int end = 0;                      ///< one past the node of `output`
  int number = -1;                  ///< llama.cpp's own

  int num_experts() const { return model.num_experts; }
  int top_k() const { return static_cast<int>(ids->ne[0]); }
  int num_tokens() const { return static_cast<int>(ids->ne[1]); }
};

/// The first expert product at node `from` or later; `num_nodes` where there is none.
int find_experts(ggml_tensor* const* nodes, int num_nodes, int from);

/// Reads the layer whose first expert product is node `first`. "" and a filled `layer`, or why this
/// is no layer that fewer experts can run.
std::string read_layer(ggml_tensor* const* nodes, int num_nodes, int first, moe_layer& layer);

}  // namespace adaptive_k_ggml

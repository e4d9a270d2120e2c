// adaptive_k for C and everything that calls C: routing with fewer experts per token, the
// expert-major permutation, and the combine step of a MoE layer. C99.
//
// Link adaptive_k::kernels for everything, or adaptive_k::c_host for the host's part alone, which
// needs no CUDA: the functions whose names end in _host, and all that take no stream. Or load the
// shared library, adaptive_k::shared, which has the device's part where it was built with CUDA.
//
// Every struct of parameters starts with
//   struct_size    sizeof(the struct), as the caller was compiled. Accepted are exactly: sizeof(the
//                  struct) in this and in every earlier released version (0.1 is the first), and
//                  the size of its required fields alone, which is offsetof the first field after
//                  "optional". What a smaller struct lacks is zero. Every other size is refused by
//                  name: larger than the library knows, or ending anywhere else.
//   message_bytes, message   where a refusal writes what is wrong, or 0 and NULL. A struct_size
//                  that ends before or within `message` gets its status alone.
// Fields after "optional" may be left zero. Structs and arrays are aligned as C aligns their types;
// an address that is not is refused by name. Functions return an adaptive_k_status, throw nothing,
// keep no global state, and write nothing when they refuse. Those that take a stream (a
// cudaStream_t, NULL for the default one) only enqueue: no allocation, no synchronisation, safe
// under the capture of a graph; adaptive_k_upload_plans alone may allocate. Their pointers are to
// device memory unless said otherwise; those of the _host functions to host memory. T is
// num_tokens, E num_experts, K0 top_k, L num_local_experts, H hidden_size.
#pragma once

// NOLINTBEGIN(modernize-deprecated-headers,modernize-use-using): C

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(ADAPTIVE_K_EXPORTS)
#define ADAPTIVE_K_API __declspec(dllexport)
#elif defined(_WIN32)
#define ADAPTIVE_K_API
#else
#define ADAPTIVE_K_API __attribute__((visibility("default")))
#endif

#if defined(__cplusplus)
extern "C" {
#endif

/** What a function returns. Values are stable across versions. */
enum adaptive_k_status {
  ADAPTIVE_K_OK = 0,               /**< done */
  ADAPTIVE_K_INVALID_ARGUMENT = 1, /**< a value outside its documented range */
  ADAPTIVE_K_SHAPE_MISMATCH = 2,   /**< sizes that do not fit one another */
  ADAPTIVE_K_UNSUPPORTED = 3,      /**< well formed, but this build cannot do it */
  ADAPTIVE_K_CUDA_ERROR = 4,       /**< reported by the CUDA runtime */
  ADAPTIVE_K_OUT_OF_MEMORY = 5     /**< of the functions that allocate alone */
};

/** What a status means, in general. Static text. */
ADAPTIVE_K_API const char* adaptive_k_status_text(int32_t status);

/** 10000 * major + 100 * minor + patch of the library. */
ADAPTIVE_K_API int32_t adaptive_k_version(void);

/** How logits, weights and values are stored. */
enum adaptive_k_float_type {
  ADAPTIVE_K_FLOAT32 = 0, /**< IEEE binary32 */
  ADAPTIVE_K_FLOAT16 = 1, /**< IEEE binary16 */
  ADAPTIVE_K_BFLOAT16 = 2 /**< the upper half of a binary32 */
};

/** How expert ids are stored. */
enum adaptive_k_id_type {
  ADAPTIVE_K_INT32 = 0, /**< int32_t */
  ADAPTIVE_K_INT64 = 1, /**< int64_t */
  ADAPTIVE_K_INT16 = 2, /**< int16_t */
  ADAPTIVE_K_UINT16 = 3 /**< uint16_t, -1 as 65535 */
};

/** What stands in the id slots past k_t; their weights are 0. */
enum adaptive_k_fill {
  ADAPTIVE_K_FILL_MINUS_ONE = 0,   /**< -1, as uint16 65535 */
  ADAPTIVE_K_FILL_NUM_EXPERTS = 1, /**< E, one past the last expert */
  ADAPTIVE_K_FILL_FIRST_EXPERT = 2 /**< the token's own first expert again */
};

/** How a logit becomes a score. */
enum adaptive_k_gating_kind {
  ADAPTIVE_K_SOFTMAX = 0,       /**< softmax over all E */
  ADAPTIVE_K_SIGMOID = 1,       /**< 1 / (1 + exp(-logit)), each expert for itself */
  ADAPTIVE_K_TOP_K_SOFTMAX = 2, /**< softmax over the selected logits */
  ADAPTIVE_K_SQRT_SOFTPLUS = 3, /**< sqrt(ln(1 + exp(logit))) */
  ADAPTIVE_K_SPARSEMIXER = 4    /**< Phi-3.5-MoE */
};

/** What a group of experts is ranked by. */
enum adaptive_k_group_score {
  ADAPTIVE_K_GROUP_TOP2_SUM = 0, /**< the sum of its two best (DeepSeek-V3) */
  ADAPTIVE_K_GROUP_MAXIMUM = 1   /**< its best (DeepSeek-V2) */
};

/** What says how sure the router is. Of a sigmoid or sqrt-softplus gating the scores by their sum
 * stand for the softmax. */
enum adaptive_k_signal {
  ADAPTIVE_K_SIGNAL_NONE = 0,        /**< none: the rule needs no signal */
  ADAPTIVE_K_SOFTMAX_ENTROPY = 1,    /**< nats, over all E */
  ADAPTIVE_K_NORMALIZED_ENTROPY = 2, /**< the same by ln E, 0..1 */
  ADAPTIVE_K_TOPK_ENTROPY = 3,       /**< nats, over the renormalised top-K0 weights */
  ADAPTIVE_K_TOPK_MASS = 4,
  ADAPTIVE_K_SCORE_RATIO = 5,
  ADAPTIVE_K_MARGIN = 6
};

/** What sets k of a token. */
enum adaptive_k_rule {
  ADAPTIVE_K_FULL = 0,
  ADAPTIVE_K_FIXED = 1, /**< k_values[0] for every token */
  ADAPTIVE_K_THRESHOLDS =
      2, /**< the first of k_values whose threshold the signal meets, else the last */
  ADAPTIVE_K_DISTORTION = 3 /**< argmin of sensitivity * d(k) + lambda * k */
};

/** A model's own routing. */
typedef struct adaptive_k_gating {
  uint32_t struct_size; /**< sizeof(the struct), as the caller was compiled */
  int32_t kind;         /**< adaptive_k_gating_kind */
  int32_t num_experts;  /**< 1..1024 */
  int32_t top_k;        /**< 1..min(num_experts, 32) */
  /* optional */
  int32_t renormalize;         /**< 1: the weights of the top K0 are divided by their sum */
  int32_t selection_bias;      /**< 1: routing calls give a routing_bias */
  float routed_scaling_factor; /**< 0 means 1 */
  int32_t n_group;             /**< 0 means 1: no grouping */
  int32_t topk_group;          /**< 0 means 1 */
  int32_t group_rank;          /**< adaptive_k_group_score */
  float jitter_epsilon;        /**< sparsemixer; 0 means 0.01 */
} adaptive_k_gating;

/** The K policy of one layer. */
typedef struct adaptive_k_policy {
  uint32_t struct_size; /**< sizeof(the struct), as the caller was compiled */
  int32_t rule;         /**< adaptive_k_rule */
  /* optional */
  int32_t signal;              /**< adaptive_k_signal */
  int32_t num_k_values;        /**< thresholds: 1..32; fixed: 1 */
  uint8_t k_values[32];        /**< ascending, within 1..K0 */
  float thresholds[32];        /**< one fewer than k_values */
  int32_t k_min;               /**< 0 means 1 */
  int32_t k_max;               /**< 0 means K0 */
  int32_t mass_exponent_given; /**< 0: 1 for models that renormalise, else 0 */
  float mass_exponent; /**< 0..1: kept weights are multiplied by (kept share)^-mass_exponent */
  float sensitivity;   /**< distortion: > 0; 0 means 1 */
  float lambda;        /**< distortion: price of one expert, >= 0 */
  /** Distortion tables in host memory, copied by adaptive_k_router_create. */
  const float* coefficients; /**< [K0 - 1, 5] */
  const float* first_expert; /**< [K0 - 1, E] or NULL */
  const float* next_expert;  /**< [K0 - 1, E] or NULL */
  /* since version 0.2 */
  /** Distortion: u, [K0 - 1, hidden_size], or NULL: no head. Copied likewise, for those who ask
   * adaptive_k_router_head. With it, calls give u . x as adaptive_k_route_params.head, there are no
   * tables, and the last three columns of coefficients are 0. */
  const float* head;
  int32_t hidden_size;       /**< of the router's input x; 1 or more with a head */
  int32_t reserved;          /**< 0 */
  int32_t num_super_experts; /**< 0..8, of super_experts */
  uint16_t super_experts[8]; /**< 0..E - 1, each once: no token drops one that is among its top
                                K0, whatever the rule and any k_max say */
  int32_t domain_given; /**< 1: the next four say how the tokens that it was calibrated on look,
                           and tokens outside are counted in out_of_domain */
  float domain_signal_least;      /**< of the signal, in its unit */
  float domain_signal_most;       /**< domain_signal_least or more */
  float domain_first_share_least; /**< 0..1, of the first expert's share of the top K0's scores */
  float domain_first_share_most;  /**< domain_first_share_least..1 */
} adaptive_k_policy;

/** A gating with its policies, checked once. Immutable; may be shared between threads. */
typedef struct adaptive_k_router adaptive_k_router;

/** What adaptive_k_router_create reads. */
typedef struct adaptive_k_router_params {
  uint32_t struct_size;              /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes;            /**< bytes at `message`, or 0 */
  char* message;                     /**< out: what is refused and why, or NULL */
  const adaptive_k_gating* gating;   /**< the model's own routing */
  const adaptive_k_policy* policies; /**< [num_layers], struct_size apart, which all have alike; one
                                        policy for every layer where num_layers is 0 */
  int32_t num_layers;                /**< 0: one policy serves every layer */
  /* optional */
  int32_t fill; /**< adaptive_k_fill */
} adaptive_k_router_params;

/** Allocates. `*router` is NULL after a refusal. */
ADAPTIVE_K_API int32_t adaptive_k_router_create(const adaptive_k_router_params* params,
                                                adaptive_k_router** router);
ADAPTIVE_K_API void adaptive_k_router_destroy(adaptive_k_router* router); /**< NULL is fine */

/** The instructions that the router's host calls run on: "scalar", "generic", "avx2" or "avx512",
 * the widest that this build of the library and this machine have. Static text; NULL for NULL. */
ADAPTIVE_K_API const char* adaptive_k_router_instruction_set(const adaptive_k_router* router);

/** What adaptive_k_router_from_preset reads. */
typedef struct adaptive_k_preset_params {
  uint32_t struct_size;   /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes; /**< bytes at `message`, or 0 */
  char* message;          /**< out: what is refused and why, or NULL */
  const char* preset; /**< name or alias of a model, or the path of a .json file. Names are looked
                         for in the folders of the environment variable ADAPTIVE_K_CALIBRATIONS,
                         then in the library's own */
  /* optional */
  const char* policy; /**< one of the preset's, or one in words such as "top_p:0.9", or the path of
                         a .json file; NULL or "": the preset's default */
  int32_t fill;       /**< adaptive_k_fill */
  int32_t reserved;   /**< 0 */
} adaptive_k_preset_params;

/** A router for a model that has a calibration file: its gating, and the policy of each of its
 * layers. Allocates and reads files. ADAPTIVE_K_UNSUPPORTED where the library was built without
 * nlohmann/json. */
ADAPTIVE_K_API int32_t adaptive_k_router_from_preset(const adaptive_k_preset_params* params,
                                                     adaptive_k_router** router);

/** What a router was made for. `gating`, whose struct_size the caller sets, is written; the number
 * of layers is 0 where one policy serves all, and -1 where router is NULL. */
ADAPTIVE_K_API int32_t adaptive_k_router_gating(const adaptive_k_router* router,
                                                adaptive_k_gating* gating);
/** See adaptive_k_router_gating. */
ADAPTIVE_K_API int32_t adaptive_k_router_num_layers(const adaptive_k_router* router);

/** The router head of a layer's policy, [K0 - 1, *hidden_size] in host memory, as long as the
 * router lives: the engine multiplies the router's input by it, best as more rows of the router's
 * matrix, and gives the product to its routing calls. NULL, and *hidden_size 0, where the policy
 * has none, or router is NULL or has no such layer. `hidden_size` may be NULL. */
ADAPTIVE_K_API const float* adaptive_k_router_head(const adaptive_k_router* router, int32_t layer,
                                                   int32_t* hidden_size);

/** A router's policies and their tables in the memory of a device. */
typedef struct adaptive_k_device_plans adaptive_k_device_plans;

/** What adaptive_k_upload_plans reads. */
typedef struct adaptive_k_upload_params {
  uint32_t struct_size;            /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes;          /**< bytes at `message`, or 0 */
  char* message;                   /**< out: what is refused and why, or NULL */
  const adaptive_k_router* router; /**< may be destroyed when the call returns */
  /* optional */
  int32_t one_layer; /**< 1: only `layer` is rewritten */
  int32_t layer;     /**< counted from 0; read with one_layer */
} adaptive_k_upload_params;

/** Where `*plans` is NULL: allocates on the current device, for any policy of the router's gating
 * and number of layers. Then, in any case, enqueues a copy to it. So launches behind a later upload
 * on the stream, also those of a graph captured before, follow the new policies, by the same
 * `*plans`. Later routers have as many layers, or one policy for all. Refuses other shapes, and a
 * stream that is being captured. */
ADAPTIVE_K_API int32_t adaptive_k_upload_plans(const adaptive_k_upload_params* params,
                                               adaptive_k_device_plans** plans, void* stream);
/** NULL is fine. Waits for the device, as cudaFree does. */
ADAPTIVE_K_API void adaptive_k_device_plans_destroy(adaptive_k_device_plans* plans);

/** What routing did: integers that add up over calls, layers, threads and ranks, and do not wrap.
 * Later versions add members at the end alone. */
typedef struct adaptive_k_metrics {
  uint64_t calls;             /**< routing calls with at least one token */
  uint64_t tokens;            /**< routed, padding left out */
  uint64_t padding_tokens;    /**< skipped by the padding mask */
  uint64_t expert_calls;      /**< sum of k_t */
  uint64_t full_expert_calls; /**< sum of K0; savings are 1 - expert_calls / full_expert_calls */
  uint64_t nonfinite_rows;    /**< routed tokens with a NaN or infinite logit */
  uint64_t distinct_experts;  /**< sum over calls of experts that any token touched */
  int64_t signal_sum_fixed; /**< low word of the sum of signals, in units of 2^-24; two's complement
                               with signal_sum_high: sums add with a carry from word to word */
  float signal_lowest;      /**< over `tokens`, in the signal's unit; 0 when there are none */
  float signal_highest;     /**< likewise */
  uint64_t k_histogram[33]; /**< tokens by k_t */
  int64_t signal_sum_high;  /**< high word */
  uint64_t shadow_expert_calls; /**< calls with chosen_counts: sum of the k the policy chose, */
  uint64_t shadow_full_expert_calls; /**< and of K0: what it would have saved is 1 - their ratio */
  uint64_t touched_experts[16]; /**< bit e % 64 of word e / 64: a token of any call touched e */
  uint64_t super_expert_tokens; /**< tokens that got more experts than the rule says, as super
                                   experts are never dropped */
  uint64_t out_of_domain; /**< tokens that do not look like those the policy was calibrated on */
} adaptive_k_metrics;

/** The same as of version 0.1, which counted experts in it. What route_params of that version's
 * size give as metrics is one of these. */
typedef struct adaptive_k_metrics_v0_1 {
  uint64_t calls;                    /**< as in adaptive_k_metrics, and so on below */
  uint64_t tokens;                   /**< routed, padding left out */
  uint64_t padding_tokens;           /**< skipped by the padding mask */
  uint64_t expert_calls;             /**< sum of k_t */
  uint64_t full_expert_calls;        /**< sum of K0 */
  uint64_t nonfinite_rows;           /**< routed tokens with a NaN or infinite logit */
  uint64_t distinct_experts;         /**< sum over calls of experts that any token touched */
  int64_t signal_sum_fixed;          /**< low word of the sum of signals */
  float signal_lowest;               /**< over `tokens` */
  float signal_highest;              /**< likewise */
  uint64_t k_histogram[33];          /**< tokens by k_t */
  uint64_t expert_counts[1024];      /**< tokens by expert */
  int64_t signal_sum_high;           /**< high word */
  uint64_t shadow_expert_calls;      /**< in shadow mode: sum of the k the policy chose */
  uint64_t shadow_full_expert_calls; /**< and of K0 */
} adaptive_k_metrics_v0_1;

/** What adaptive_k_route and adaptive_k_route_host read, and where they write. */
typedef struct adaptive_k_route_params {
  uint32_t struct_size;   /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes; /**< bytes at `message`, or 0 */
  char* message;          /**< out: what is refused and why, or NULL */
  const void* logits;     /**< [T, E] of logits_type, row stride row_stride */
  int64_t num_tokens;     /**< T in 0..2^31 - 1 */
  void* topk_ids;         /**< [T, K0] of ids_type: out, score descending */
  void* topk_weights;     /**< [T, K0] of weights_type: out */
  int32_t logits_type;    /**< adaptive_k_float_type */
  int32_t ids_type;       /**< adaptive_k_id_type */
  int32_t weights_type;   /**< adaptive_k_float_type */
  int32_t layer;          /**< counted from 0 */
  /* optional */
  int64_t row_stride;                   /**< elements from row to row; 0 means E */
  const adaptive_k_device_plans* plans; /**< device: what adaptive_k_upload_plans made; its policies
                                           count, not the router's. Host: not read */
  int32_t* topk_counts;                 /**< [T], k_t: out */
  float* signal;                        /**< [T], in the unit of the policy's signal: out */
  int32_t* chosen_counts;    /**< [T]: shadow mode, routes full K and records the policy's k here */
  const float* routing_bias; /**< [E], required with selection_bias: selects, never weighs */
  const uint8_t* padding_mask;  /**< [T], non-zero: skip this token, k_t = 0 */
  const uint8_t* k_min;         /**< [T], 1..K0. A device does not check k_min <= k_max <= K0 */
  const uint8_t* k_max;         /**< [T] */
  const void* replay_ids;       /**< [T, K0] of ids_type: weigh these experts instead of choosing */
  const int32_t* replay_counts; /**< [T], 0..K0, or NULL: all K0 */
  void* metrics; /**< host: adaptive_k_metrics_bytes(), an adaptive_k_metrics and what later
                    versions have behind it, added to. Device: adaptive_k_device_metrics_bytes(),
                    zero before the first call, and not shared by launches that may run together */
  int32_t overlap_previous; /**< device: 1 where adaptive_k_overlap_supported() says so */
  int32_t reserved;         /**< 0 */
  /* since version 0.2 */
  uint64_t* expert_counts; /**< [E]: added to, tokens by expert */
  const void* head;        /**< [T, K0 - 1] of logits_type: what the head of the policy gives (see
                              adaptive_k_router_head), required where it has one, else not read */
  int64_t head_stride;     /**< elements from row to row; 0 means K0 - 1. Of columns behind the
                              logits, head is logits + E and this is row_stride */
} adaptive_k_route_params;

/** Routes in this thread, by host memory. Any number of threads may share the router. */
ADAPTIVE_K_API int32_t adaptive_k_route_host(const adaptive_k_router* router,
                                             const adaptive_k_route_params* params);
/** One launch. */
ADAPTIVE_K_API int32_t adaptive_k_route(const adaptive_k_router* router,
                                        const adaptive_k_route_params* params, void* stream);

/** Enough for the metrics of this and any earlier version. */
ADAPTIVE_K_API size_t adaptive_k_metrics_bytes(void);
/** Bytes of the metrics that a device call adds to. */
ADAPTIVE_K_API size_t adaptive_k_device_metrics_bytes(void);
/** Converts a copy, in host memory, of what a device counted. metrics_bytes is sizeof *metrics as
 * the caller was compiled: of this or an earlier released version, else nothing is written. */
ADAPTIVE_K_API int32_t adaptive_k_metrics_from_device(const void* copied,
                                                      adaptive_k_metrics* metrics,
                                                      size_t metrics_bytes);

/** Rows in order of expert, of an expert in order of token. A slot, token * K0 + j, counts when j <
 * topk_counts[token] and its id is an expert of this rank; of slots of one token with the same
 * expert the first counts. sorted_slots, block_experts and expert_offsets + L are what vLLM calls
 * sorted_token_ids, expert_ids and num_tokens_post_pad. */
typedef struct adaptive_k_permute_params {
  uint32_t struct_size;   /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes; /**< bytes at `message`, or 0 */
  char* message;          /**< out: what is refused and why, or NULL */
  const void* topk_ids;   /**< [T, K0] of ids_type */
  int64_t num_tokens;     /**< T >= 0 */
  int32_t top_k;          /**< 1..32 */
  int32_t num_experts;    /**< E in 1..1024 */
  int32_t ids_type;       /**< adaptive_k_id_type */
  /* optional */
  int32_t block_size;         /**< each expert's rows are padded to a multiple of it; 0 means 1 */
  int32_t num_local_experts;  /**< L, with an expert_map; 0 means E */
  int32_t overlap_previous;   /**< device: 1 where adaptive_k_overlap_supported() says so */
  const int32_t* topk_counts; /**< [T] or NULL: all K0 slots count */
  const int32_t* expert_map;  /**< [E], local expert or -1 */
  int32_t* expert_counts;     /**< [L]: out, rows without padding */
  int32_t* expert_offsets;    /**< [L + 1]: out, first row of each expert, and all rows */
  int32_t* sorted_slots;      /**< [capacity]: out, slot of each row; padding: T * K0 */
  int32_t* sorted_tokens;     /**< [capacity]: out, token of each row; padding: T */
  int32_t* row_of_slot;       /**< [T, K0]: out, -1 where none */
  int32_t* block_experts;     /**< [capacity / block_size]: out, -1 past the last block */
} adaptive_k_permute_params;

/** Rows that the arrays of length `capacity` must hold; -1 where the shape is refused. */
ADAPTIVE_K_API int64_t adaptive_k_permuted_capacity(const adaptive_k_permute_params* params);
/** The same as adaptive_k_permute in host memory, in this thread. Allocates nothing. */
ADAPTIVE_K_API int32_t adaptive_k_permute_host(const adaptive_k_permute_params* params);
/** With a NULL workspace only *workspace_bytes is set. Else one launch, and before it, above 256
 * tokens, an asynchronous memset. The workspace is device memory, aligned to 16 bytes, needs no
 * initialisation, and is free for other use when the launch is done. */
ADAPTIVE_K_API int32_t adaptive_k_permute(const adaptive_k_permute_params* params, void* workspace,
                                          size_t* workspace_bytes, void* stream);
/** adaptive_k_route, then adaptive_k_permute of its result: one launch up to 256 tokens (and 800
 * local experts), else two. With a NULL workspace only *workspace_bytes is set.
 * Of `permute`, topk_ids, topk_counts and ids_type are not read; num_tokens, top_k and num_experts,
 * which adaptive_k_permuted_capacity needs, are 0 or those of the call.
 * The first 16 bytes of the workspace must be zero before its first use here; launches leave it
 * ready for the next. One workspace serves one stream at a time. */
ADAPTIVE_K_API int32_t adaptive_k_route_permute(const adaptive_k_router* router,
                                                const adaptive_k_route_params* route,
                                                const adaptive_k_permute_params* permute,
                                                void* workspace, size_t* workspace_bytes,
                                                void* stream);

/** output[t] = addend[t] + sum over slots j of topk_weights[t, j] * expert_outputs[row of (t, j)],
 * in order of j, in fp32. */
typedef struct adaptive_k_combine_params {
  uint32_t struct_size;       /**< sizeof(the struct), as the caller was compiled */
  uint32_t message_bytes;     /**< bytes at `message`, or 0 */
  char* message;              /**< out: what is refused and why, or NULL */
  const void* expert_outputs; /**< [rows, H] of values_type, row stride row_stride */
  void* output;               /**< [T, H] of values_type: out */
  int64_t num_tokens;         /**< T >= 0 */
  int32_t top_k;              /**< K0 in 1..32 */
  int32_t hidden_size;        /**< H >= 1 */
  int32_t values_type;        /**< adaptive_k_float_type */
  int32_t weights_type;       /**< adaptive_k_float_type */
  /* optional */
  int64_t row_stride;         /**< elements from row to row; 0 means H */
  const int32_t* row_of_slot; /**< [T, K0], -1: left out; NULL: slots are rows */
  const int32_t* topk_counts; /**< [T] or NULL: all K0 */
  const void* topk_weights;   /**< [T, K0] of weights_type, or NULL: 1 each */
  const void* addend;         /**< [T, H] of values_type, or NULL: zeros; may be output */
  int32_t overlap_previous;   /**< device: 1 where adaptive_k_overlap_supported() says so */
  int32_t reserved;           /**< 0 */
} adaptive_k_combine_params;

/** The same as adaptive_k_combine in host memory, in this thread. Allocates nothing. */
ADAPTIVE_K_API int32_t adaptive_k_combine_host(const adaptive_k_combine_params* params);
/** One launch. */
ADAPTIVE_K_API int32_t adaptive_k_combine(const adaptive_k_combine_params* params, void* stream);

/** Whether launches on the current device may overlap the kernel before them on the stream, and
 * wait for its results on the device (programmatic dependent launch, sm_90 and later). Asks the
 * CUDA runtime: call it once, not for every launch. */
ADAPTIVE_K_API int32_t adaptive_k_overlap_supported(int32_t* supported);

#if defined(__cplusplus)
}
#endif

// NOLINTEND(modernize-deprecated-headers,modernize-use-using)

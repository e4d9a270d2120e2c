// Expert-major permutation on the device, one launch for any number of tokens.
//
// A chunk of 256 tokens leaves one bit for each token an expert gets, in shared memory. Setting
// bits takes no order, and the rank of a token among its expert's is the count of bits below its
// own: so the result cannot depend on scheduling. Up to one chunk, one block does it all. Beyond,
// blocks take numbers as they start: the first half count their tokens, the others wait for all
// counts and place. A block waits only for lower numbers, which are running: no block has to be
// resident together with another, and no cooperative launch is needed.
//
// Every routing kernel holds a copy of the one-block version, so loops are not unrolled unless that
// keeps loads in flight.
#pragma once

#include <cstdint>

#include "adaptive_k/core/permutation.hpp"
#include "adaptive_k/cuda/dependent_launch.cuh"
#include "adaptive_k/cuda/storage.cuh"
#include "adaptive_k/types.hpp"

ADAPTIVE_K_NAMESPACE_BEGIN

namespace cuda {

inline constexpr int permute_threads = 256;            ///< of a block
inline constexpr int chunk_tokens = 256;               ///< that a block takes at a time
inline constexpr int chunk_words = chunk_tokens / 32;  ///< their bits
inline constexpr int max_counting_blocks = 64;         ///< beyond, blocks take several chunks

/// Start of the workspace; counts [num_parts, L] follow it.
struct permute_tickets {
  unsigned int next;     ///< zero before a launch with many parts
  unsigned int counted;  ///< likewise
  unsigned int arrived;  ///< routing blocks that are done; zero between launches
};

/// Everything a launch needs; device pointers. Passed by value.
struct permute_params {
  permutation_shape shape;          ///< num_local_experts is L, never 0
  const void* topk_ids;             ///< [num_tokens, K0] of `ids`
  const std::int32_t* topk_counts;  ///< [num_tokens] or null: all K0
  const std::int32_t* expert_map;   ///< [E], local expert or -1; null: all are local
  permutation_output output;        ///< as the host's
  std::int32_t capacity;            ///< permuted_capacity(shape)
  permute_tickets* tickets;         ///< not read by permute_kernel with one part
  std::int32_t* part_counts;        ///< [num_parts, L]: rows of each part by expert
  int num_parts;                    ///< blocks that count, and as many that place
  id_type ids;                      ///< how topk_ids are stored
};

namespace permute_detail {

__device__ ADAPTIVE_K_INLINE int thread() noexcept {
  return static_cast<int>(threadIdx.x);
}
__device__ ADAPTIVE_K_INLINE int threads() noexcept {
  return static_cast<int>(blockDim.x);
}
__device__ ADAPTIVE_K_INLINE int minimum(int a, int b) noexcept {
  return a < b ? a : b;
}

/// Dynamic shared memory: what one chunk needs for L experts.
struct chunk_memory {
  unsigned int* tokens;   ///< [L, chunk_words], a bit a token
  unsigned char* before;  ///< [L, chunk_words - 1], tokens in earlier words, from the second on
  std::int32_t* rows;     ///< [L + 1], the row of the chunk's first token of each expert
  int* repeats;           ///< whether a token names an expert twice

  __host__ __device__ static constexpr int bytes(int num_local) noexcept {
    return num_local * (chunk_words * 4 + 4 + chunk_words - 1) + 4 + 4;
  }
  __device__ static chunk_memory at(void* memory, int num_local) noexcept {
    chunk_memory made;
    made.tokens = static_cast<unsigned int*>(memory);
    made.rows = reinterpret_cast<std::int32_t*>(made.tokens + num_local * chunk_words);
    made.repeats = made.rows + num_local + 1;
    made.before = reinterpret_cast<unsigned char*>(made.repeats + 1);
    return made;
  }

  /// Tokens of `expert` in the words before `word`.
  __device__ ADAPTIVE_K_INLINE int earlier(int expert, int word) const noexcept {
    return word == 0 ? 0 : before[expert * (chunk_words - 1) + word - 1];
  }
  /// Tokens of the chunk that go to `expert`, once `before` is known.
  __device__ ADAPTIVE_K_INLINE int count(int expert) const noexcept {
    return earlier(expert, chunk_words - 1) + __popc(tokens[(expert + 1) * chunk_words - 1]);
  }
};

/// Slots of one chunk and the experts that they name.
struct chunk_slots {
  const permute_params& params;
  int first_token;  ///< slots, and so tokens, fit int32
  int num_tokens;

  __device__ chunk_slots(const permute_params& all, int chunk) noexcept
      : params(all),
        first_token(chunk * chunk_tokens),
        num_tokens(minimum(static_cast<int>(all.shape.num_tokens) - first_token, chunk_tokens)) {}

  /// The expert of a slot of the chunk, or -1; loads do not wait for one another.
  __device__ ADAPTIVE_K_INLINE int expert_at(int token, int j) const noexcept {
    const int at = first_token + token;
    const int id = load_id(params.topk_ids, at * params.shape.top_k + j, params.ids);
    const bool counts = params.topk_counts == nullptr || j < params.topk_counts[at];
    return counts ? detail::local_expert(id, params.shape, params.expert_map) : -1;
  }

  /// f(token of the chunk, j, expert or -1) for every slot; a thread's slots are a block apart, and
  /// it has several of them in flight.
  template <class F>
  __device__ ADAPTIVE_K_INLINE void for_each(F f) const noexcept {
    constexpr int at_once = 4;
    const int top_k = params.shape.top_k;
    const int num_slots = num_tokens * top_k;
    // slot / top_k without a division: exact for slots of a chunk, up to 256 * 32.
    const unsigned int reciprocal = ((1u << 20) + static_cast<unsigned>(top_k) - 1) / top_k;
    const auto token_of = [=](int slot) {
      return static_cast<int>(static_cast<unsigned>(slot) * reciprocal >> 20);
    };
#pragma unroll 1
    for (int first = thread(); first < num_slots; first += at_once * threads()) {
      int expert[at_once];
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int slot = first + i * threads();
        if (slot < num_slots) expert[i] = expert_at(token_of(slot), slot - token_of(slot) * top_k);
      }
      ADAPTIVE_K_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int slot = first + i * threads();
        if (slot < num_slots) f(token_of(slot), slot - token_of(slot) * top_k, expert[i]);
      }
    }
  }
};

/// Sets the chunk's bits and counts those in earlier words. Ends with the block in step.
__device__ inline void mark_chunk(const chunk_slots& slots, const chunk_memory& memory,
                                  int num_local) noexcept {
#pragma unroll 1
  for (int i = thread(); i < num_local * chunk_words; i += threads()) memory.tokens[i] = 0;
  if (thread() == 0) *memory.repeats = 0;
  __syncthreads();
  slots.for_each([&](int token, int, int expert) {
    if (expert < 0) return;
    const unsigned int bit = 1u << (token % 32);
    const unsigned int old = atomicOr(&memory.tokens[expert * chunk_words + token / 32], bit);
    if ((old & bit) != 0) atomicExch(memory.repeats, 1);
  });
  __syncthreads();
#pragma unroll 1
  for (int e = thread(); e < num_local; e += threads()) {
    int sum = 0;
    ADAPTIVE_K_UNROLL
    for (int word = 0; word + 1 < chunk_words; ++word) {
      sum += __popc(memory.tokens[e * chunk_words + word]);
      memory.before[e * (chunk_words - 1) + word] = static_cast<unsigned char>(sum);
    }
  }
  __syncthreads();
}

/// Turns padded row counts rows[0..L-1] into first rows, and rows[L] into all rows. For one warp.
__device__ inline void scan_rows(std::int32_t* rows, int num_local) noexcept {
  const int lane = thread() % 32;
  const int each = (num_local + 31) / 32;
  const int from = minimum(lane * each, num_local);
  const int to = minimum(from + each, num_local);
  std::int32_t sum = 0;
#pragma unroll 1
  for (int e = from; e < to; ++e) sum += rows[e];
  std::int32_t end = sum;
  ADAPTIVE_K_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::int32_t other = __shfl_up_sync(0xFFFFFFFFu, end, static_cast<unsigned>(distance));
    if (lane >= distance) end += other;
  }
  std::int32_t first = end - sum;
#pragma unroll 1
  for (int e = from; e < to; ++e) {
    const std::int32_t count = rows[e];
    rows[e] = first;
    first += count;
  }
  if (lane == 31) rows[num_local] = end;
}

/// Writes the slots of a marked chunk; rows[e] is the row of its first token of expert e.
__device__ inline void place_chunk(const chunk_slots& slots, const chunk_memory& memory) noexcept {
  const permutation_output& output = slots.params.output;
  const int top_k = slots.params.shape.top_k;
  const bool repeats = *memory.repeats != 0;
  slots.for_each([&](int token, int j, int expert) {
    if (repeats && expert >= 0)
#pragma unroll 1
      for (int earlier = 0; earlier < j; ++earlier)
        if (slots.expert_at(token, earlier) == expert) {
          expert = -1;
          break;
        }
    const int at = slots.first_token + token;
    const int slot = at * top_k + j;
    std::int32_t row = -1;
    if (expert >= 0) {
      const int word = token / 32;
      const unsigned int below = (1u << (token % 32)) - 1;
      row = memory.rows[expert] + memory.earlier(expert, word) +
            __popc(memory.tokens[expert * chunk_words + word] & below);
      if (output.sorted_slots != nullptr) output.sorted_slots[row] = slot;
      if (output.sorted_tokens != nullptr) output.sorted_tokens[row] = at;
    }
    if (output.row_of_slot != nullptr) output.row_of_slot[slot] = row;
  });
}

/// Part `part` of what belongs to no slot: counts and offsets, padding rows, the experts of blocks.
/// rows[0..L] are first rows; count_of(e) the rows of expert e without padding.
template <class CountOf>
__device__ inline void write_frame(const permute_params& params, const std::int32_t* rows, int part,
                                   CountOf count_of) noexcept {
  const permutation_output& output = params.output;
  const int num_local = params.shape.num_local_experts;
  const int block_size = params.shape.block_size;
  if (part == 0) {
#pragma unroll 1
    for (int e = thread(); e <= num_local; e += threads()) {
      if (output.expert_offsets != nullptr) output.expert_offsets[e] = rows[e];
      if (output.expert_counts != nullptr && e < num_local) output.expert_counts[e] = count_of(e);
    }
  }
  const auto all_slots = static_cast<std::int32_t>(params.shape.num_tokens * params.shape.top_k);
  const auto all_tokens = static_cast<std::int32_t>(params.shape.num_tokens);
  const auto pad = [&](std::int32_t from, std::int32_t to, int stride) {
#pragma unroll 1
    for (std::int32_t row = from; row < to; row += stride) {
      if (output.sorted_slots != nullptr) output.sorted_slots[row] = all_slots;
      if (output.sorted_tokens != nullptr) output.sorted_tokens[row] = all_tokens;
    }
  };
  const int lane = thread() % 32;
  const int warps = threads() / 32;
  if (block_size > 1 || output.block_experts != nullptr) {
#pragma unroll 1
    for (int e = part * warps + thread() / 32; e < num_local; e += params.num_parts * warps) {
      if (block_size > 1) pad(rows[e] + count_of(e) + lane, rows[e + 1], 32);
      if (output.block_experts != nullptr)
#pragma unroll 1
        for (int block = rows[e] / block_size + lane; block < rows[e + 1] / block_size; block += 32)
          output.block_experts[block] = e;
    }
  }
  const int first = part * threads() + thread();
  const int stride = params.num_parts * threads();
  pad(rows[num_local] + first, params.capacity, stride);
  if (output.block_experts != nullptr)
#pragma unroll 1
    for (int block = rows[num_local] / block_size + first; block < params.capacity / block_size;
         block += stride)
      output.block_experts[block] = -1;
}

/// The whole permutation by one block, for at most one chunk. `memory`: chunk_memory::bytes(L).
__device__ inline void permute_one_chunk(const permute_params& params, void* memory) noexcept {
  const int num_local = params.shape.num_local_experts;
  const chunk_memory chunk = chunk_memory::at(memory, num_local);
  const chunk_slots slots(params, 0);
  mark_chunk(slots, chunk, num_local);
#pragma unroll 1
  for (int e = thread(); e < num_local; e += threads())
    chunk.rows[e] = detail::padded_rows(chunk.count(e), params.shape.block_size);
  __syncthreads();
  if (thread() < 32) scan_rows(chunk.rows, num_local);
  __syncthreads();
  place_chunk(slots, chunk);
  write_frame(params, chunk.rows, 0, [&](int e) { return chunk.count(e); });
}

/// First and last + 1 chunk of a part.
struct part_chunks {
  int first, last;
  __device__ part_chunks(const permute_params& params, int part) noexcept {
    const auto chunks =
        static_cast<int>((params.shape.num_tokens + chunk_tokens - 1) / chunk_tokens);
    const int each = (chunks + params.num_parts - 1) / params.num_parts;
    first = minimum(part * each, chunks);
    last = minimum(first + each, chunks);
  }
};

/// Counts a part's tokens by expert and publishes them.
__device__ inline void count_part(const permute_params& params, const chunk_memory& chunk,
                                  int part) noexcept {
  const int num_local = params.shape.num_local_experts;
  const part_chunks range(params, part);
#pragma unroll 1
  for (int e = thread(); e < num_local; e += threads()) chunk.rows[e] = 0;
#pragma unroll 1
  for (int c = range.first; c < range.last; ++c) {
    mark_chunk(chunk_slots(params, c), chunk, num_local);
#pragma unroll 1
    for (int e = thread(); e < num_local; e += threads()) chunk.rows[e] += chunk.count(e);
    __syncthreads();
  }
#pragma unroll 1
  for (int e = thread(); e < num_local; e += threads())
    params.part_counts[static_cast<std::int64_t>(part) * num_local + e] = chunk.rows[e];
  __syncthreads();
  if (thread() == 0) {
    __threadfence();  // after the barrier: it then covers what the whole block wrote
    atomicAdd(&params.tickets->counted, 1u);
  }
}

/// Waits for all counts, then writes a part's rows.
__device__ inline void place_part(const permute_params& params, const chunk_memory& chunk,
                                  int part) noexcept {
  const int num_local = params.shape.num_local_experts;
  constexpr int experts_per_thread = max_experts / permute_threads;
  if (thread() == 0) {
    const volatile unsigned int* counted = &params.tickets->counted;
    while (*counted < static_cast<unsigned>(params.num_parts)) __nanosleep(64);
    __threadfence();
  }
  __syncthreads();
  std::int32_t* totals = reinterpret_cast<std::int32_t*>(chunk.tokens);  // not marked yet
  std::int32_t earlier[experts_per_thread];
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < experts_per_thread; ++i) {
    const int e = i * permute_threads + thread();
    std::int32_t sum = 0;
    earlier[i] = 0;
    if (e >= num_local) continue;
#pragma unroll 8
    for (int p = 0; p < params.num_parts; ++p) {
      if (p == part) earlier[i] = sum;
      sum += __ldcg(&params.part_counts[p * num_local + e]);
    }
    totals[e] = sum;
    chunk.rows[e] = detail::padded_rows(sum, params.shape.block_size);
  }
  __syncthreads();
  if (thread() < 32) scan_rows(chunk.rows, num_local);
  __syncthreads();
  write_frame(params, chunk.rows, part, [&](int e) { return totals[e]; });
  __syncthreads();
  ADAPTIVE_K_UNROLL
  for (int i = 0; i < experts_per_thread; ++i) {
    const int e = i * permute_threads + thread();
    if (e < num_local) chunk.rows[e] += earlier[i];
  }
  const part_chunks range(params, part);
#pragma unroll 1
  for (int c = range.first; c < range.last; ++c) {
    const chunk_slots slots(params, c);
    mark_chunk(slots, chunk, num_local);
    place_chunk(slots, chunk);
    __syncthreads();
#pragma unroll 1
    for (int e = thread(); e < num_local; e += threads()) chunk.rows[e] += chunk.count(e);
    __syncthreads();
  }
}

}  // namespace permute_detail

/// The last step of a routing kernel whose ids are to be permuted. Up to one chunk, the last of its
/// blocks does that here, with chunk_memory::bytes(L) at `memory`; beyond, the permute kernel
/// follows and finds its tickets cleared.
__device__ inline void permute_after_routing(const permute_params& params, void* memory) noexcept {
  __shared__ bool permutes;
  __syncthreads();
  if (threadIdx.x == 0) {
    permutes = false;
    if (params.num_parts == 1) {
      __threadfence();  // publishes what the block wrote
      permutes = atomicAdd(&params.tickets->arrived, 1u) == gridDim.x - 1;
      __threadfence();  // and shows it what the others did
    } else if (blockIdx.x == 0) {
      params.tickets->next = 0;
      params.tickets->counted = 0;
    }
  }
  __syncthreads();
  if (!permutes) return;
  permute_detail::permute_one_chunk(params, memory);
  if (threadIdx.x == 0) atomicExch(&params.tickets->arrived, 0u);
}

/// One block of permute_threads for one part; else 2 * num_parts blocks.
template <bool ManyParts>
__global__ void __launch_bounds__(permute_threads) permute_kernel(permute_params params) {
  extern __shared__ uint4 adaptive_k_shared[];
  wait_for_previous_kernel();
  allow_next_kernel();
  if constexpr (ManyParts) {
    __shared__ unsigned int ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(&params.tickets->next, 1u);
    __syncthreads();
    const int number = static_cast<int>(ticket);
    const permute_detail::chunk_memory chunk =
        permute_detail::chunk_memory::at(adaptive_k_shared, params.shape.num_local_experts);
    if (number < params.num_parts)
      permute_detail::count_part(params, chunk, number);
    else
      permute_detail::place_part(params, chunk, number - params.num_parts);
  } else {
    permute_detail::permute_one_chunk(params, adaptive_k_shared);
  }
}

}  // namespace cuda

ADAPTIVE_K_NAMESPACE_END

// What the parts of adaptive-k-llama that differ from adaptive-k share.
#pragma once

#include <cstdint>

#include "llama.h"

namespace program {

/// That of the model loaded last: what texts are cut by.
void set_vocabulary(const llama_vocab* vocabulary);

/// As the GGUF stores experts, scales of blocks counted.
void set_bytes_per_weight(double bytes);

/// Texts from their beginnings, tokens [num_sequences, length], in one pass: logits
/// [num_sequences, length, vocab_size]. Throws std::runtime_error.
void decode(llama_context* context, const std::int32_t* tokens, int num_sequences, int length,
            int vocab_size, float* logits);

}  // namespace program

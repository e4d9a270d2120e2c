// Two contexts in two threads, each reading the same text: both must give what one alone gives.
//   llama_threads MODEL.gguf          with the plug-in loaded; the thread sanitizer may watch
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

constexpr int length = 48;

/// Logits of a made-up text: the first half at once, then token by token.
std::vector<float> run(llama_model* model) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = length;
  params.n_threads = params.n_threads_batch = 1;
  llama_context* const context = llama_init_from_model(model, params);
  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::vector<float> logits;
  for (int at = 0; context != nullptr && at < length;) {
    const int number = at == 0 ? length / 2 : 1;
    llama_batch batch = llama_batch_init(number, 0, 1);
    batch.n_tokens = number;
    for (int i = 0; i < number; ++i) {
      batch.token[i] = (at + i) * 7 % vocab;
      batch.pos[i] = at + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = 1;
    }
    if (llama_decode(context, batch) != 0) std::abort();
    const float* const row = llama_get_logits_ith(context, number - 1);
    logits.insert(logits.end(), row, row + vocab);
    llama_batch_free(batch);
    at += number;
  }
  if (context != nullptr) llama_free(context);
  return logits;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  ggml_backend_load_all();
  llama_model* const model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) return 2;
  std::vector<float> results[2];
  std::thread first([&] { results[0] = run(model); });
  std::thread second([&] { results[1] = run(model); });
  first.join();
  second.join();
  const std::vector<float> alone = run(model);
  llama_model_free(model);
  bool same = !alone.empty();
  for (const std::vector<float>& result : results)
    same = same && result.size() == alone.size() &&
           std::memcmp(result.data(), alone.data(), alone.size() * sizeof(float)) == 0;
  std::puts(same ? "the same" : "different");
  return same ? 0 : 1;
}

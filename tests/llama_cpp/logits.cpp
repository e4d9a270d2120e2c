// Runs windows of a text through libllama and writes every token's logits, and its loss on stdout.
//   llama_logits MODEL.gguf TEXT OUT [key=value...]
// windows=4 length=256 batch=512 threads=1 repack=1 used=0 (expert_used_count, 0: the model's own)
// mmap=1 exact=0 (1: keys and values in F32, for comparison with other engines)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "llama_logits: %s\n", why.c_str());
  std::exit(1);
}

std::vector<llama_token> tokens_of(const llama_model* model, const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("cannot read " + file);
  const std::string text((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  std::vector<llama_token> tokens(text.size() + 8);
  const int number =
      llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int>(text.size()),
                     tokens.data(), static_cast<int>(tokens.size()), false, false);
  if (number < 0) fail("cannot tokenize " + file);
  tokens.resize(static_cast<std::size_t>(number));
  return tokens;
}

double loss_of(const float* logits, int vocab, llama_token next) {
  double largest = -1e30, sum = 0.0;
  for (int i = 0; i < vocab; ++i) largest = std::fmax(largest, static_cast<double>(logits[i]));
  for (int i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[next]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) fail("usage: llama_logits MODEL.gguf TEXT OUT [key=value...]");
  std::map<std::string, int> options = {{"windows", 4}, {"length", 256}, {"batch", 512},
                                        {"threads", 1}, {"repack", 1},   {"used", 0},
                                        {"exact", 0},   {"mmap", 1}};
  for (int i = 4; i < argc; ++i) {
    char* const equals = std::strchr(argv[i], '=');
    const std::string key =
        equals != nullptr ? std::string(argv[i], static_cast<std::size_t>(equals - argv[i])) : "";
    if (options.count(key) == 0) fail(std::string("unknown option ") + argv[i]);
    options[key] = std::atoi(equals + 1);
  }
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all();
  llama_backend_init();

  llama_model_params model_params = llama_model_default_params();
  model_params.use_extra_bufts = options["repack"] != 0;
  if (options["mmap"] == 0) model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  llama_model_kv_override overrides[2] = {};
  if (options["used"] != 0) {
    overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_INT;
    overrides[0].val_i64 = options["used"];
    // The architecture is not known before the file is read: the test names it.
    const char* const architecture = std::getenv("LLAMA_LOGITS_ARCHITECTURE");
    std::snprintf(overrides[0].key, sizeof overrides[0].key, "%s.expert_used_count",
                  architecture != nullptr ? architecture : "llama");
    model_params.kv_overrides = overrides;
  }
  llama_model* const model = llama_model_load_from_file(argv[1], model_params);
  if (model == nullptr) fail(std::string("cannot load ") + argv[1]);
  const int length = options["length"], batch_size = options["batch"];
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<unsigned>(length);
  params.n_batch = params.n_ubatch = static_cast<unsigned>(batch_size);
  params.n_threads = params.n_threads_batch = options["threads"];
  if (options["exact"] != 0) {
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  }
  llama_context* const context = llama_init_from_model(model, params);
  if (context == nullptr) fail("cannot make a context");
  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  const std::vector<llama_token> tokens = tokens_of(model, argv[2]);
  if (tokens.size() <
      static_cast<std::size_t>(options["windows"]) * static_cast<std::size_t>(length))
    fail("the text has " + std::to_string(tokens.size()) + " tokens");

  std::FILE* const out = std::fopen(argv[3], "wb");
  if (out == nullptr) fail(std::string("cannot write ") + argv[3]);
  llama_batch batch = llama_batch_init(batch_size, 0, 1);
  double loss = 0.0;
  long predictions = 0;
  for (int w = 0; w < options["windows"]; ++w) {
    llama_memory_clear(llama_get_memory(context), true);
    const llama_token* const window = tokens.data() + static_cast<std::ptrdiff_t>(w) * length;
    for (int first = 0; first < length; first += batch_size) {
      batch.n_tokens = std::min(batch_size, length - first);
      for (int i = 0; i < batch.n_tokens; ++i) {
        batch.token[i] = window[first + i];
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
      }
      if (llama_decode(context, batch) != 0) fail("llama_decode failed");
      for (int i = 0; i < batch.n_tokens; ++i) {
        const float* const logits = llama_get_logits_ith(context, i);
        if (std::fwrite(logits, sizeof(float), static_cast<std::size_t>(vocab), out) !=
            static_cast<std::size_t>(vocab))
          fail("cannot write the logits");
        if (first + i + 1 >= length) continue;
        loss += loss_of(logits, vocab, window[first + i + 1]);
        ++predictions;
      }
    }
  }
  if (std::fclose(out) != 0) fail("cannot write the logits");
  std::printf("loss %.9f nats, %ld predictions\n", loss / static_cast<double>(predictions),
              predictions);
  const ggml_backend_reg_t plugin = ggml_backend_reg_by_name("adaptive-k");
  if (plugin != nullptr) {
    const auto totals = reinterpret_cast<void (*)(unsigned long*, unsigned long*, unsigned long*)>(
        ggml_backend_reg_get_proc_address(plugin, "adaptive_k_get_totals"));
    unsigned long routed = 0, calls = 0, full = 0;
    totals(&routed, &calls, &full);
    std::printf("routed %lu, calls %lu of %lu\n", routed, calls, full);
  }
  llama_batch_free(batch);
  llama_free(context);
  llama_model_free(model);
  llama_backend_free();
}

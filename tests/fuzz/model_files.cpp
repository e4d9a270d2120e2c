// A model's folder, its tokenizer and a trace: any bytes load and run, or are refused by file and
// key.
#include <adaptive_k/adaptive_k.hpp>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "fuzz.hpp"
#include "moe_engine/checkpoint.hpp"
#include "moe_engine/engine.hpp"
#include "moe_engine/safetensors.hpp"
#include "moe_engine/tokenizer.hpp"
#include "scratch_file.hpp"

namespace {

template <class Call>
void accept_or_refuse(Call call) {
  try {
    call();
  } catch (const std::runtime_error& error) {  // bench::failure is one
    fuzz::require_message(error.what());
  }
}

void read_tensors(moe_engine::safetensors_file opened) {
  for (const auto& [name, entry] : opened.tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t extent : entry.shape) count *= extent;
    accept_or_refuse([&, &name = name] {
      const std::vector<float> values = opened.read(name);
      fuzz::require(static_cast<std::int64_t>(values.size()) == count,
                    "as many values as its shape");
    });
    accept_or_refuse([&, &name = name] { opened.read_integers(name); });
  }
}

void read_trace(moe_engine::safetensors_file opened) {
  const bench::trace_reader trace(std::move(opened));
  const bench::trace_info& info = trace.info();
  fuzz::require(adaptive_k::validate(info.gating).ok(), "a trace's gating is valid");
  const std::int64_t rows = info.num_tokens < 4 ? info.num_tokens : 4;
  for (int layer = 0; layer < info.num_layers && layer < 4; ++layer)
    accept_or_refuse([&] {
      const std::vector<float> logits = trace.logits(layer, info.num_tokens - rows, rows);
      fuzz::require(static_cast<std::int64_t>(logits.size()) == rows * info.gating.num_experts,
                    "rows of E logits");
      trace.selection_bias(layer);
    });
}

/// Whatever text a tokenizer takes comes back from its tokens.
void read_text(const moe_engine::tokenizer& tokenizer, const std::string& text) {
  const std::vector<std::int32_t> tokens = tokenizer.encode(text);
  std::string back;
  for (const std::int32_t token : tokens) {
    fuzz::require(token >= 0 && token < tokenizer.vocab_size(), "tokens of the vocabulary");
    back += tokenizer.bytes_of(token);
  }
  fuzz::require(back == text, "the text that was read");
}

/// Runs a few tokens through a model that loaded.
void run_model(const std::filesystem::path& folder) {
  moe_engine::engine engine = moe_engine::engine::load(folder);
  const moe_engine::model_config& config = engine.config();
  fuzz::require(adaptive_k::validate(config.gating).ok(), "a model's gating is valid");
  const adaptive_k::router router(config.gating, adaptive_k::k_policy::full());
  const std::int32_t tokens[] = {0, config.vocab_size - 1};
  const int length = config.max_positions < 2 ? 1 : 2;
  std::vector<float> logits(static_cast<std::size_t>(length) *
                            static_cast<std::size_t>(config.vocab_size));
  engine.forward(tokens, 1, length, moe_engine::route_with(router), logits.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::scratch_folder folder;
  fuzz::bytes from(data, size);
  const char kind = from.raw<char>();  // a letter, so that a person can write seeds
  if (kind == 't') {
    accept_or_refuse([&] { read_trace({"trace.safetensors", from.rest()}); });
  } else if (kind == 'i') {
    const std::filesystem::path file =
        folder.write("model.safetensors.index.json", from.up_to_zero());
    folder.write("model.safetensors", from.rest());
    accept_or_refuse([&] { const moe_engine::checkpoint opened(folder.path()); });
    std::filesystem::remove(file);
  } else if (kind == 'k') {
    const std::string json = from.up_to_zero();
    accept_or_refuse(
        [&] { read_text(moe_engine::tokenizer(json, "tokenizer.json"), from.rest()); });
  } else if (kind == 'm') {
    folder.write("config.json", from.up_to_zero());
    folder.write("model.safetensors", from.rest());
    accept_or_refuse([&] { run_model(folder.path()); });
  } else {
    accept_or_refuse([&] { read_tensors({"model.safetensors", from.rest()}); });
  }
  return 0;
}

// How adaptive-k-llama finds models and texts: GGUF files, cut by their own tokenizers.
#include <fmt/format.h>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/input/dataset.hpp"
#include "bench/adaptive_k/input/model.hpp"
#include "bench/adaptive_k/input/sha256.hpp"
#include "program.hpp"

namespace {

const llama_vocab* model_vocabulary = nullptr;
double bytes_per_weight = 2.0;

}  // namespace

namespace program {

void set_vocabulary(const llama_vocab* of_model) {
  model_vocabulary = of_model;
}
void set_bytes_per_weight(double bytes) {
  bytes_per_weight = bytes;
}

}  // namespace program

namespace bench {

namespace fs = std::filesystem;

namespace {

dataset tokenised(std::string path, const std::string& bytes) {
  dataset data;
  data.path = std::move(path);
  data.sha256 = sha256_hex(bytes);
  data.unit = "tokens";
  data.tokens.resize(bytes.size() + 16);
  const int number =
      llama_tokenize(model_vocabulary, bytes.data(), static_cast<int>(bytes.size()),
                     data.tokens.data(), static_cast<int>(data.tokens.size()), false, false);
  if (number < 0)
    throw failure(fmt::format("{}: the model's tokenizer does not read it", data.path));
  data.tokens.resize(static_cast<std::size_t>(number));
  return data;
}

}  // namespace

fs::path reference_folder() {
  return ADAPTIVE_K_REFERENCE_MODEL_DIR;
}

loaded_model load_model(const std::string& file) {
  if (fs::path(file).extension() != ".gguf")
    throw failure(fmt::format("--model: '{}', expected a .gguf file", file));
  moe_engine::engine engine = moe_engine::engine::load(file);
  vocabulary words(engine.config().vocab_size);
  loaded_model model{
      "", fs::absolute(file).parent_path(), std::move(engine), std::move(words), "", {}, {}, {}};
  const moe_engine::model_config& config = model.engine.config();
  model.name = config.declared_name.empty() ? config.name : config.declared_name;
  model.weight_dtype = model.engine.expert_dtype();
  model.sizes.hidden = config.hidden_size;
  model.sizes.intermediate = config.intermediate_size;
  model.sizes.bytes_per_weight = bytes_per_weight;
  model.preset = find_preset({model.name, config.name}, config.gating, model.preset_note);
  return model;
}

policy_choice choose_policy(const std::string& spec, const loaded_model& model) {
  const moe_engine::model_config& config = model.engine.config();
  return choose_policy(spec, config.gating, config.num_moe_layers, model.preset);
}

dataset read_dataset(const fs::path& file, const vocabulary& /*words*/) {
  return tokenised(file.string(), read_file(file));
}

dataset dataset_of_text(const std::string& text, const vocabulary& /*words*/) {
  return tokenised("--text", text);
}

}  // namespace bench

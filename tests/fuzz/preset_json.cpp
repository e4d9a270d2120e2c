// Calibration files: any bytes are a preset or a policy that works, or are refused by file and key.
#include <adaptive_k/adaptive_k.hpp>
#include <adaptive_k/calibration/preset.hpp>

#include "fuzz.hpp"
#include "scratch_file.hpp"

namespace {

using namespace adaptive_k;  // NOLINT(google-build-using-namespace): the target is about it

/// What was accepted routes: every token gets 1..K0 experts, each once.
void require_that_it_routes(const gating& model, const preset_policy& policy, int num_layers) {
  const router made = make_router(model, policy, num_layers);
  fuzz::require(made.validity().ok(), std::string("accepted, then: ") + made.validity().message());
  const auto num_experts = static_cast<std::size_t>(model.num_experts);
  constexpr int tokens = 2;
  std::vector<float> logits(num_experts * tokens), bias(num_experts);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>((i * 37) % 101) / 16.0f;
  routing_extras extras;
  if (model.selection_bias) extras.routing_bias = bias.data();
  const int last = made.num_layers() > 0 ? made.num_layers() - 1 : 0;
  for (const int layer : {0, last}) {
    const routed_batch out = made.route(
        layer, logits_view<float>{logits.data(), tokens, model.num_experts}, nullptr, extras);
    fuzz::require(out.result.ok(), std::string("accepted, then: ") + out.result.message());
    for (std::size_t t = 0; t < tokens; ++t) {
      const int count = out.topk_counts[t];
      fuzz::require(count >= 1 && count <= model.top_k, "k_t within 1..K0");
      std::vector<bool> seen(num_experts);
      for (int j = 0; j < count; ++j) {
        const int id =
            out.topk_ids[t * static_cast<std::size_t>(model.top_k) + static_cast<std::size_t>(j)];
        fuzz::require(id >= 0 && id < model.num_experts, "ids within 0..E-1");
        fuzz::require(!seen[static_cast<std::size_t>(id)], "an expert once a token");
        seen[static_cast<std::size_t>(id)] = true;
      }
    }
  }
}

gating model_of_policy_files() {
  gating model;
  model.num_experts = 8;
  model.top_k = 4;
  return model;
}

template <class Call>
void accept_or_refuse(const std::filesystem::path& file, Call call) {
  try {
    call();
  } catch (const preset_error& error) {
    fuzz::require_message(error.what());
    fuzz::require(std::string(error.what()).find(file.filename().string()) != std::string::npos,
                  std::string("a refusal names the file: ") + error.what());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::scratch_folder folder;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::filesystem::path file = folder.write("input.json", text);
  accept_or_refuse(file, [&] {
    const preset loaded = load_preset_file(file);
    for (const preset_policy& policy : loaded.policies)
      require_that_it_routes(loaded.model, policy, loaded.num_moe_layers);
    fuzz::require(loaded.make_router().validity().ok(), "the default policy makes a router");
  });
  accept_or_refuse(file, [&] {
    const gating model = model_of_policy_files();
    const preset_policy policy = parse_policy(file.string(), model, 2);
    require_that_it_routes(model, policy, 2);
  });
  return 0;
}

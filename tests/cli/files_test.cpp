// Data sets and traces as files: what is read, and what is refused with which words.
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/adaptive_k/input/dataset.hpp"
#include "bench/adaptive_k/input/sha256.hpp"
#include "bench/adaptive_k/input/trace.hpp"
#include "bench/adaptive_k/output/safetensors.hpp"
#include "cli/scratch.hpp"

namespace {

/// The message of the error that `action` ends in; "" when it does not.
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(bench::sha256_hex(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(bench::sha256_hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Dataset, ByteModelsReadAnyFileAsBytes) {
  scratch_folder folder;
  const auto file = folder.write("text.json", std::string("\x00\xff[", 3));
  const bench::dataset data = bench::read_dataset(file, 256);
  EXPECT_EQ(data.tokens, (std::vector<std::int32_t>{0, 255, 91}));
  EXPECT_EQ(data.unit, "bytes");
  EXPECT_EQ(data.sha256, bench::sha256_hex(std::string("\x00\xff[", 3)));
}

TEST(Dataset, OtherModelsReadTokenIds) {
  scratch_folder folder;
  const std::vector<std::int32_t> expected = {1, 31999, 258};
  EXPECT_EQ(bench::read_dataset(folder.write("ids.json", "[1, 31999, 258]"), 32000).tokens,
            expected);
  const std::string binary("\x01\0\0\0\xff\x7c\0\0\x02\x01\0\0", 12);
  EXPECT_EQ(bench::read_dataset(folder.write("ids.bin", binary), 32000).tokens, expected);

  const auto refusal = [&](const char* name, const std::string& content) {
    const auto file = folder.write(name, content);
    return message_of([&] { bench::read_dataset(file, 32000); });
  };
  EXPECT_TRUE(contains(refusal("a.txt", "words"), "a.txt: the model has a vocabulary of 32000"));
  EXPECT_TRUE(contains(refusal("b.json", "[1, 32000]"), "b.json: the value at index 1 is outside"));
  EXPECT_TRUE(
      contains(refusal("b2.json", "[1, 99999999999999]"), "the value at index 1 is outside"));
  EXPECT_TRUE(contains(refusal("c.json", "[1, \"x\"]"), "c.json: [1]: \"x\", expected an integer"));
  EXPECT_TRUE(contains(refusal("d.json", "{"), "d.json: line 1"));
  EXPECT_TRUE(contains(refusal("e.bin", "123"), "e.bin: 3 bytes are no whole number"));
}

TEST(Dataset, WindowsDoNotOverlapAndTheLastPartIsLeftOut) {
  bench::dataset data;
  data.path = "text";
  data.unit = "bytes";
  data.tokens.resize(1000);
  const bench::window_plan plan = bench::plan_windows(data, 256, 0);
  EXPECT_EQ(plan.count, 3);
  EXPECT_EQ(plan.unused_tokens, 1000 - 3 * 256);
  EXPECT_EQ(bench::plan_windows(data, 256, 2).count, 2);
  EXPECT_EQ(bench::plan_windows(data, 256, 99).count, 3);
  EXPECT_TRUE(contains(message_of([&] { bench::plan_windows(data, 1001, 0); }),
                       "text: 1000 bytes, fewer than one window of 1001"));
}

bench::trace_info small_trace() {
  bench::trace_info info;
  info.model = "small";
  info.num_layers = 2;
  info.gating.num_experts = 4;
  info.gating.top_k = 2;
  info.num_tokens = 6;
  info.window = 3;
  info.dataset = "text.txt";
  info.dataset_sha256 = "00ff";
  return info;
}

std::vector<std::vector<float>> small_logits() {
  std::vector<std::vector<float>> logits(2, std::vector<float>(24));
  for (std::size_t i = 0; i < 24; ++i) {
    logits[0][i] = static_cast<float>(i);
    logits[1][i] = -static_cast<float>(i);
  }
  return logits;
}

TEST(Trace, ReadsWhatWasWritten) {
  scratch_folder folder;
  const auto file = folder.path() / "t.safetensors";
  bench::write_trace(file, small_trace(), {small_logits(), {}});
  const bench::trace_reader trace(file);
  EXPECT_EQ(trace.info().model, "small");
  EXPECT_EQ(trace.info().num_layers, 2);
  EXPECT_EQ(trace.info().gating.num_experts, 4);
  EXPECT_EQ(trace.info().gating.top_k, 2);
  EXPECT_TRUE(trace.info().gating.renormalize);
  EXPECT_EQ(trace.info().num_tokens, 6);
  EXPECT_EQ(trace.info().window, 3);
  EXPECT_EQ(trace.info().dataset_sha256, "00ff");
  EXPECT_EQ(trace.logits(1, 0, 6), small_logits()[1]);
  EXPECT_EQ(trace.logits(0, 4, 1), (std::vector<float>{16, 17, 18, 19}));
  EXPECT_TRUE(trace.selection_bias(0).empty());
  EXPECT_TRUE(contains(message_of([&] { trace.logits(0, 5, 2); }), "no rows 5..6"));
}

TEST(Trace, EveryPartIsChecked) {
  scratch_folder folder;
  const auto file = folder.path() / "t.safetensors";
  bench::write_trace(file, small_trace(), {small_logits(), {}});
  const std::string good = bench::read_file(file);
  const auto refusal_of = [&](const std::string& content) {
    const auto bad = folder.write("bad.safetensors", content);
    return message_of([&] { bench::trace_reader reader(bad); });
  };
  // Replacements of equal length leave the header's length right.
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    EXPECT_EQ(from.size(), to.size());
    return refusal_of(text.replace(at, from.size(), to));
  };
  EXPECT_EQ(refusal_of(good), "");
  EXPECT_TRUE(contains(refusal_of(""), "truncated"));
  EXPECT_TRUE(contains(refusal_of(good.substr(0, 40)), "truncated: the header has"));
  EXPECT_TRUE(contains(refusal_of(good.substr(0, good.size() - 4)), "truncated: it ends at byte"));
  EXPECT_TRUE(contains(with("adaptive_k.trace", "adaptive_k.graph"), "is not a trace"));
  EXPECT_TRUE(contains(with("\"version\":\"1\"", "\"version\":\"2\""), "metadata version: '2'"));
  EXPECT_TRUE(contains(with("\"top_k\":\"2\"", "\"top_k\":\"9\""), "top_k is 9, expected 1..4"));
  EXPECT_TRUE(contains(with("\"top_k\":\"2\"", "\"top_k\":\"x\""), "metadata top_k: 'x'"));
  EXPECT_TRUE(
      contains(with("\"top_k\":", "\"top_j\":"), "metadata top_j: '2', expected no other keys"));
  EXPECT_TRUE(contains(with("softmax", "hardmax"), "metadata gating: 'hardmax', expected one"));
  EXPECT_TRUE(contains(with("\"true\"", "\"TRUE\""), "metadata renormalize: 'TRUE'"));
  EXPECT_TRUE(contains(with("\"window\":\"3\"", "\"window\":\"4\""),
                       "metadata num_tokens: '6', expected a multiple of window = 4"));
  EXPECT_TRUE(contains(with("\"num_layers\":\"2\"", "\"num_layers\":\"3\""),
                       "layer.2.router_logits: missing"));
  EXPECT_TRUE(contains(with("layer.1.router", "layer.7.router"), "layer.1.router_logits: missing"));
  EXPECT_TRUE(
      contains(with("\"F32\"", "\"F16\""), "data_offsets: [0,96], expected 48 bytes for F16"));
  EXPECT_TRUE(contains(with("\"dtype\"", "\"dtipe\""), "dtype: missing, expected"));
}

/// A trace of `logits` and `more`, with `changes` to good metadata; "" leaves a key out.
std::string refusal_of_trace(const std::map<std::string, std::string>& changes,
                             std::vector<bench::float_tensor> more = {}) {
  std::map<std::string, std::string> metadata = {{"format", "adaptive_k.trace"},
                                                 {"version", "1"},
                                                 {"model", "m"},
                                                 {"num_layers", "1"},
                                                 {"num_experts", "4"},
                                                 {"top_k", "2"},
                                                 {"gating", "softmax"},
                                                 {"renormalize", "true"},
                                                 {"num_tokens", "2"},
                                                 {"window", "2"},
                                                 {"dataset", "d"},
                                                 {"dataset_sha256", "s"}};
  for (const auto& [key, value] : changes)
    if (value.empty())
      metadata.erase(key);
    else
      metadata[key] = value;
  more.push_back({"layer.0.router_logits", {2, 4}, std::vector<float>(8, 0.5f)});
  const scratch_folder folder;
  const auto file = folder.path() / "t.safetensors";
  bench::write_safetensors(file, more, metadata);
  const std::string message = message_of([&] { bench::trace_reader reader(file); });
  EXPECT_LE(message.size(), 1200u);
  if (message.empty()) return "";
  EXPECT_EQ(message.rfind(file.string() + ": ", 0), 0u) << message;
  return message.substr(file.string().size() + 2);
}

TEST(Trace, EveryKeyWithAWrongValueIsNamed) {
  EXPECT_EQ(refusal_of_trace({}), "");
  std::string euros;
  while (euros.size() < 2'000'000) euros += "\xE2\x82\xAC";
  for (const char* key : {"version", "num_layers", "num_experts", "top_k", "gating", "renormalize",
                          "num_tokens", "window"}) {
    for (const std::string& value :
         {std::string("x"), std::string("-1"), std::string("1e300"), std::string("2.0"),
          std::string(" 2"), std::string("99999999999999999999"), std::string("[]"), euros}) {
      const std::string message = refusal_of_trace({{key, value}});
      EXPECT_EQ(message.rfind("metadata " + std::string(key) + ": '" + value.substr(0, 20), 0), 0u)
          << message;
      EXPECT_TRUE(contains(message, "expected ")) << message;
    }
    EXPECT_EQ(refusal_of_trace({{key, ""}}), "metadata " + std::string(key) + ": missing");
  }
}

TEST(Trace, ReadsEverythingThatIsStoredOrRefusesIt) {
  EXPECT_TRUE(
      contains(refusal_of_trace({{"routed_scaling_factor", "2.5"}}),
               "metadata routed_scaling_factor: '2.5', expected no other keys than format"));
  EXPECT_TRUE(contains(refusal_of_trace({{"groups_kept", "2"}}), "expected num_groups beside it"));
  const std::vector<float> four(4, 1.0f), eight(8, 1.0f);
  EXPECT_TRUE(
      contains(refusal_of_trace({}, {{"layer.1.router_logits", {2, 4}, eight}}),
               "layer.1.router_logits: unknown tensor, expected router_logits of 1 layers"));
  EXPECT_TRUE(contains(refusal_of_trace({}, {{"other", {4}, four}}), "other: unknown tensor"));
  EXPECT_EQ(refusal_of_trace({}, {{"layer.0.selection_bias", {4}, four}}), "");
  EXPECT_TRUE(contains(refusal_of_trace({}, {{"layer.0.selection_bias", {2, 2}, four}}),
                       "layer.0.selection_bias: is F32 [2, 2], expected F32 [4]"));
}

TEST(Trace, TakesNoMemoryForTokensThatAreNotThere) {
  // 400 bytes that speak of 2^40 tokens.
  EXPECT_TRUE(contains(refusal_of_trace({{"num_tokens", "1099511627776"}, {"window", "2"}}),
                       "layer.0.router_logits: is F32 [2, 4], expected F32 [1099511627776, 4]"));
  const scratch_folder folder;
  std::string header =
      R"({"layer.0.router_logits":{"dtype":"F32","shape":[1099511627776,4],"data_offsets":[0,0]}})";
  std::string bytes;
  for (unsigned i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  const auto file = folder.write("t.safetensors", bytes + header);
  EXPECT_TRUE(contains(message_of([&] { bench::trace_reader reader(file); }),
                       "expected 17592186044416 bytes"));
}

TEST(Dataset, HostileTokenFilesEndInAShortMessage) {
  scratch_folder folder;
  std::string wide = "[";
  while (wide.size() < 10'000'000) wide += "{},";
  wide.back() = ']';
  std::string euros;
  while (euros.size() < 3'000'000) euros += "\xE2\x82\xAC";
  for (const std::string& text :
       {std::string(100'000, '['), "[" + std::string(100'000, '['), wide, "[\"" + euros + "\"]",
        euros, std::string("{}"), std::string("5"), std::string("[null]"), std::string("[[1]]"),
        std::string("[true]"), std::string("[1.5]"), std::string("[{\"a\": 1}]")}) {
    const auto file = folder.write("ids.json", text);
    const std::string message = message_of([&] { bench::read_dataset(file, 32000); });
    EXPECT_EQ(message.rfind(file.string() + ": ", 0), 0u) << message;
    EXPECT_TRUE(contains(message, "expected ")) << message;
    EXPECT_LE(message.size(), 1100u);
  }
}

TEST(Trace, ReadsTheBiasesAndGroupsOfOtherRouters) {
  scratch_folder folder;
  const auto file = folder.path() / "t.safetensors";
  bench::write_safetensors(file,
                           {{"layer.0.router_logits", {2, 4}, std::vector<float>(8, 0.5f)},
                            {"layer.0.selection_bias", {4}, {1, 2, 3, 4}}},
                           {{"format", "adaptive_k.trace"},
                            {"version", "1"},
                            {"model", "m"},
                            {"num_layers", "1"},
                            {"num_experts", "4"},
                            {"top_k", "2"},
                            {"gating", "sigmoid"},
                            {"renormalize", "true"},
                            {"num_tokens", "2"},
                            {"window", "2"},
                            {"dataset", "d"},
                            {"dataset_sha256", "s"},
                            {"num_groups", "2"},
                            {"groups_kept", "1"}});
  const bench::trace_reader trace(file);
  EXPECT_TRUE(trace.info().gating.selection_bias);
  EXPECT_EQ(trace.info().gating.n_group, 2);
  EXPECT_EQ(trace.info().gating.topk_group, 1);
  EXPECT_EQ(trace.info().gating.group_rank, adaptive_k::group_score::top2_sum);
  EXPECT_EQ(trace.selection_bias(0), (std::vector<float>{1, 2, 3, 4}));
}

}  // namespace

// What safetensors files may hold: the verdict of the format's own reference (the package
// safetensors 0.8.0) on each case, and of the format's description where that is stricter.
#include <gtest/gtest.h>
#include <moe_engine/safetensors.hpp>

#include "model/files.hpp"

namespace small_model {
namespace {

using nlohmann::json;

class safetensors_folder : public model_folder {};

TEST_F(safetensors_folder, refuses_malformed_headers) {
  const auto refuses = [&](const std::string& header, const std::vector<std::string>& words) {
    write_raw(file(), header, 16);
    const std::string text = complaint(folder.path());
    expect_words(text, {file().string()});
    expect_words(text, words);
  };
  refuses("no json", {"not a JSON object"});
  refuses("[]", {"not a JSON object"});
  refuses(R"({"a": 1})", {"\"a\"", "expected dtype"});
  refuses(R"({"a": {"dtype": "F32", "shape": [4]}})", {"\"a\"", "data_offsets"});
  refuses(R"({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}})", {"\"a\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}})",
          {"\"a\"", "expected 12 bytes", "[3]"});
  refuses(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}})", {"\"a\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}})",
          {"truncated", "\"a\"", "20", "16"});
  refuses(R"({"a": {"dtype": "Q4_0", "shape": [4], "data_offsets": [0, 16]}})",
          {"\"a\"", "unknown dtype \"Q4_0\""});
  refuses(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}})",
          {"\"a\"", "impossible shape"});
  write_text(file(), std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10));
  expect_words(complaint(folder.path()), {"not a safetensors file", "header"});
}

TEST(safetensors, reads_every_kind_of_value_exactly) {
  const temporary_folder folder("values");
  const auto path = folder.path() / "a.safetensors";
  const tensors all = {{"x", {{5}, {0.0f, -1.5f, 65504.0f, 6.103515625e-05f, 0.333251953125f}}},
                       {"none", {{0, 4}, {}}},
                       {"scalar", {{}, {2.0f}}}};
  for (const char* dtype : {"F32", "F16"}) {
    write_safetensors(path, all, dtype);
    const moe_engine::safetensors_file file(path);
    EXPECT_EQ(file.read("x"), all.at("x").values);
    EXPECT_TRUE(file.read("none", {0, 4}).empty());
    EXPECT_EQ(file.read("scalar"), std::vector<float>{2.0f});
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_THROW(file.read("y"), std::runtime_error);
    EXPECT_THROW(file.read_integers("x"), std::runtime_error);
  }
  write_raw(path,
            R"({"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
                "i": {"dtype": "I64", "shape": [1], "data_offsets": [7, 15]},
                "u": {"dtype": "U8", "shape": [3], "data_offsets": [4, 7]}})",
            15);
  const moe_engine::safetensors_file file(path);
  EXPECT_EQ(file.read("b"), (std::vector<float>{0.0f, 0.0f}));
  EXPECT_EQ(file.read_integers("i"), std::vector<std::int64_t>{0});
  EXPECT_EQ(file.read_integers("u"), (std::vector<std::int64_t>{0, 0, 0}));
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string text;
  for (unsigned i = 0; i < 8; ++i) text += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return text + header + std::string(data_bytes, '\0');
}

/// What is said of a file in memory; empty where it is accepted.
std::string file_verdict(const std::string& bytes) {
  try {
    const moe_engine::safetensors_file file("f", bytes);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

std::string entry(const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "F32") {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// {"a": first, "b": second}
std::string header_of(const std::string& first, const std::string& second = "") {
  return R"({"a":)" + first + (second.empty() ? "" : R"(,"b":)" + second) + "}";
}

TEST(safetensors, accepts_what_the_reference_accepts) {
  const std::string four = entry("[4]", "[0,16]");
  const std::pair<std::string, std::size_t> cases[] = {
      {header_of(four), 16},
      {header_of(four) + "   ", 16},
      {header_of(four) + "\n", 16},
      {"{}", 0},
      {R"({"b":)" + entry("[4]", "[16,32]") + R"(,"a":)" + four + "}", 32},
      {header_of(entry("[]", "[0,4]")), 4},
      {header_of(entry("[0,4]", "[0,0]")), 0},
      {header_of(four, entry("[0]", "[16,16]")), 16},
      {header_of(four, entry("[0]", "[0,0]")), 16},
      {header_of(entry("[0,9223372036854775807,9223372036854775807]", "[0,0]")), 0},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1}})", 16},
      {R"({"__metadata__":{"a":"b"},"a":)" + four + "}", 16},
      {R"({"__metadata__":{}})", 0},
      {R"({"__metadata__":null})", 0},
      {R"({"":)" + four + "}", 16},
  };
  for (const auto& [header, bytes] : cases)
    EXPECT_EQ(file_verdict(file_of(header, bytes)), "") << header;
  const std::pair<const char*, std::size_t> bits[] = {
      {"F64", 64},        {"I64", 64},    {"U64", 64},    {"C64", 64},    {"F32", 32},
      {"I32", 32},        {"U32", 32},    {"F16", 16},    {"BF16", 16},   {"I16", 16},
      {"U16", 16},        {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
      {"F8_E5M2FNUZ", 8}, {"I8", 8},      {"U8", 8},      {"BOOL", 8},    {"F6_E2M3", 6},
      {"F6_E3M2", 6},     {"F4", 4}};
  for (const auto& [dtype, size] : bits) {
    EXPECT_EQ(file_verdict(file_of(
                  header_of(entry("[8]", "[0," + std::to_string(size) + "]", dtype)), size)),
              "")
        << dtype;
    if (size < 8) {
      EXPECT_NE(
          file_verdict(file_of(header_of(entry("[1]", "[0,1]", dtype)), 1)).find("byte's end"),
          std::string::npos);
    }
  }
}

TEST(safetensors, refuses_what_the_reference_refuses) {
  const std::string four = entry("[4]", "[0,16]");
  struct refusal {
    std::string header;
    std::size_t bytes;
    const char* words;
  };
  const refusal cases[] = {
      {header_of(four) + " x", 16, "is no JSON"},
      {header_of(four) + std::string("\0\0", 2), 16, "is no JSON"},
      {"\xEF\xBB\xBF" + header_of(four), 16, "not a JSON object"},
      {"[]", 0, "not a JSON object"},
      {"", 0, "not a JSON object"},
      {"{}", 4, "4 bytes of data, expected 0: no tensor has the rest"},
      {header_of(entry("[4]", "[4,20]")), 20, "begins at byte 4, expected 0"},
      {header_of(four, entry("[4]", "[20,36]")), 36, "begins at byte 20, expected 16"},
      {header_of(four), 20, "20 bytes of data, expected 16"},
      {header_of(four), 12, "truncated"},
      {header_of(four, four), 16, "within the tensor \"a\""},
      {header_of(four, entry("[4]", "[8,24]")), 24, "within the tensor \"a\""},
      {header_of(four, entry("[0]", "[8,8]")), 16, "within the tensor \"a\""},
      {header_of(four, entry("[0]", "[99,99]")), 16, "truncated"},
      {header_of(entry("[4]", "[16,0]")), 16, "data_offsets: [16,0], expected 16 bytes"},
      {header_of(entry("[9223372036854775807,9223372036854775807,0]", "[0,0]")), 0, "impossible"},
      {header_of(entry("[4294967296,4294967296]", "[0,16]")), 16, "impossible shape"},
      {header_of(entry("[4611686018427387905,4]", "[0,16]")), 16, "impossible shape"},
      {header_of(entry("[2305843009213693952]", "[0,16]")), 16, "impossible shape"},
      {header_of(entry("[3]", "[0,16]")), 16, "expected 12 bytes for F32 [3]"},
      {header_of(entry("[-4]", "[0,16]")), 16, "shape: [-4], expected an array of integers"},
      {header_of(entry("[4.0]", "[0,16]")), 16, "shape: [4.0], expected an array of integers"},
      {header_of(entry("[4]", "[0,16,16]")), 16, "data_offsets: [0,16,16], expected [begin, end]"},
      {header_of(entry("[4]", "[16]")), 16, "data_offsets: [16], expected [begin, end]"},
      {header_of(entry("[4]", "[\"0\",\"16\"]")), 16, "expected [begin, end]"},
      {header_of(entry("[4]", "[0,18446744073709551616]")), 16, "expected [begin, end]"},
      {header_of(entry("[4]", "[0,16.0]")), 16, "expected [begin, end]"},
      {header_of(entry("[4]", "[0,16]", "f32")), 16, "unknown dtype \"f32\""},
      {R"({"a":{"shape":[4],"data_offsets":[0,16]}})", 16, "dtype: missing"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 16,
       "a.dtype: the key comes twice"},
      {R"({"__metadata__":{"a":1}})", 0, "__metadata__.a: 1, expected a string"},
      {R"({"__metadata__":{"a":null}})", 0, "__metadata__.a: null, expected a string"},
      {R"({"__metadata__":{"a":{}}})", 0, "__metadata__.a: {}, expected a string"},
      {R"({"__metadata__":[]})", 0, "__metadata__: [], expected an object of strings"},
      {R"({"__metadata__":"x"})", 0, "__metadata__: \"x\", expected an object of strings"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__: the key comes twice"},
      {"{\"\xFF\":" + four + "}", 16, "is no JSON"},
      {R"({"\ud800":)" + four + "}", 16, "is no JSON"},
      {R"({"a":)" + std::string(80000, '[') + "}", 0, "a[0]"},
      // The reference lets these pass; the format's description does not.
      {R"({"a":)" + four + R"(,"a":)" + four + "}", 16, "a: the key comes twice"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "__metadata__.a: the key comes twice"},
      {" " + header_of(four), 16, "not a JSON object"},
      {R"({"a":["F32",[4],[0,16]]})", 16, "expected dtype, shape and data_offsets"},
  };
  for (const refusal& c : cases) {
    const std::string text = file_verdict(file_of(c.header, c.bytes));
    EXPECT_EQ(text.rfind("f: ", 0), 0u);
    EXPECT_NE(text.find(c.words), std::string::npos)
        << c.header.substr(0, 100) << "\nexpected: " << c.words << "\nsaid: " << text;
    EXPECT_LE(text.size(), 1100u);
  }
  EXPECT_NE(file_verdict("").find("truncated"), std::string::npos);
  EXPECT_NE(file_verdict("1234567").find("truncated"), std::string::npos);
  EXPECT_NE(file_verdict(std::string("\2\0\0\0\0\0\0\0{", 9)).find("truncated"), std::string::npos);
  std::string over = std::string("\x01\xE1\xF5\x05\0\0\0\0", 8);  // 100,000,001
  EXPECT_NE(file_verdict(over + "{}").find("expected at most 100000000"), std::string::npos);
}

TEST(safetensors, names_every_field_of_another_type) {
  const json good = {{"dtype", "F32"}, {"shape", {4}}, {"data_offsets", {0, 16}}};
  for (const auto& item : good.items())
    for (const json& value : json::parse(R"([null, true, 5, 2.5, "text", ["x"], {"a": 1}])")) {
      if (value.type() == item.value().type() && !value.is_array()) continue;
      json changed = good;
      changed[item.key()] = value;
      const std::string text = file_verdict(file_of(json{{"a", changed}}.dump(), 16));
      EXPECT_EQ(
          text.rfind("f: tensor \"a\": " + item.key() + ": " + value.dump() + ", expected ", 0), 0u)
          << text;
    }
}

TEST(safetensors, takes_no_memory_for_sizes_that_the_file_does_not_have) {
  // 2^40 rows of a tensor, 2^62 bytes of one, a header of 2^63 bytes.
  for (const std::string& bytes :
       {file_of(header_of(entry("[1099511627776,4]", "[0,0]")), 0),
        file_of(header_of(entry("[1152921504606846976]", "[0,4611686018427387904]")), 0),
        std::string("\0\0\0\0\0\0\0\x80{}", 10)})
    EXPECT_NE(file_verdict(bytes), "");
}

TEST(safetensors, long_names_make_short_messages) {
  std::string name;
  while (name.size() < 3'000'000) name += "\xE2\x82\xAC";
  for (const std::string& header :
       {"{\"" + name + "\":1}", R"({"a":)" + entry("[4]", "[0,16]", name) + "}",
        "{\"" + name + "\":" + entry("[3]", "[0,16]") + "}", R"({"a":")" + name + "\"}",
        R"({"__metadata__":{")" + name + "\":1}}", R"({"a":)" + name,
        R"({"__metadata__":{"a":[")" + name + "\"]}}"}) {
    const std::string text = file_verdict(file_of(header, 16));
    EXPECT_NE(text, "");
    EXPECT_LE(text.size(), 1100u);
  }
}

TEST(safetensors, reads_the_same_from_memory_and_by_rows) {
  const temporary_folder folder("rows");
  const auto path = folder.path() / "a.safetensors";
  const tensors all = {{"x", {{3, 2}, {0, 1, 2, 3, 4, 5}}}, {"y", {{2}, {7, 8}}}};
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    write_safetensors(path, all, dtype);
    std::ifstream stream(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    for (const auto& file :
         {moe_engine::safetensors_file(path), moe_engine::safetensors_file("f", bytes)}) {
      EXPECT_EQ(file.read("x"), all.at("x").values);
      EXPECT_EQ(file.read("y", {2}), all.at("y").values);
      EXPECT_EQ(file.read_rows("x", {3, 2}, 1, 2), (std::vector<float>{2, 3, 4, 5}));
      EXPECT_TRUE(file.read_rows("x", {3, 2}, 3, 0).empty());
      EXPECT_THROW(file.read_rows("x", {3, 2}, 2, 2), std::runtime_error);
      EXPECT_THROW(file.read_rows("x", {3, 2}, -1, 1), std::runtime_error);
      EXPECT_THROW(file.read_rows("x", {2, 3}, 0, 1), std::runtime_error);
    }
  }
}

}  // namespace
}  // namespace small_model

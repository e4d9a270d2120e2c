#include "bench/adaptive_k/output/safetensors.hpp"

#include <cstddef>
#include <nlohmann/json.hpp>

#include "bench/adaptive_k/failure.hpp"
#include "bench/adaptive_k/output/files.hpp"

namespace bench {
namespace {

using json = nlohmann::ordered_json;

constexpr std::uint64_t length_bytes = 8;

}  // namespace

void write_safetensors(const std::filesystem::path& file, const std::vector<float_tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  json header;
  header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const float_tensor& tensor : tensors) {
    const std::uint64_t end = offset + tensor.values.size() * sizeof(float);
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = text_of(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  unsigned char raw[length_bytes] = {};
  for (std::size_t i = 0; i < length_bytes; ++i)
    raw[i] = static_cast<unsigned char>(text.size() >> (8 * i));

  output_file output("--output", file);
  output.write({reinterpret_cast<const char*>(raw), sizeof raw});
  output.write(text);
  for (const float_tensor& tensor : tensors)
    output.write({reinterpret_cast<const char*>(tensor.values.data()),
                  tensor.values.size() * sizeof(float)});
  output.commit();
}

}  // namespace bench

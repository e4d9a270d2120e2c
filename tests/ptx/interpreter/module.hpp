// One PTX translation unit: its functions as text, its variables, its source files.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "parser.hpp"

namespace ptx {

struct program;

struct ptx_function {
  std::string name;
  bool entry = false;
  std::string_view results;  ///< between the parentheses before a .func name
  std::string_view parameters;
  std::string_view body;     ///< empty for a declaration
  bool clustered = false;    ///< asks for clusters, which are not supported
  unsigned max_threads = 0;  ///< .maxntid or .reqntid; 0 without
};

/// PTX text found in a fat binary.
struct ptx_image {
  int target = 0;  ///< 75 for sm_75
  std::string_view text;
};

/// Every PTX text in the fat binary that `wrapper` (of __cudaRegisterFatBinary) points to. Throws
/// parse_error when one is compressed.
std::vector<ptx_image> images_of(const void* wrapper);

class module {
 public:
  module(std::string_view text, int target);
  module(const module&) = delete;
  module& operator=(const module&) = delete;
  ~module();

  int target() const { return target_; }
  const ptx_function* find_function(std::string_view name) const;
  /// Module-level variable; nullptr when there is none.
  const declaration* find_variable(std::string_view name) const;
  /// Its address in device memory (.global and .const).
  std::uint64_t address_of(std::string_view variable) const;
  const std::string& file(int number) const;
  /// The line, from 1, at which a part of its text starts.
  std::uint32_t line_of(std::string_view part) const;
  std::vector<std::string> entries() const;
  /// The decoded kernel; decodes it on first use.
  const program& kernel(const std::string& name);

 private:
  void parse_function(scanner& in, bool entry);
  void parse_variable(scanner& in, std::string_view space, bool external);
  void place_variables();
  void initialise(const declaration& variable, std::uint64_t address);
  std::uint64_t value_of(std::string_view expression, scalar type) const;

  int target_;
  std::vector<const char*> line_ends_;
  std::unordered_map<std::string_view, ptx_function> functions_;
  std::vector<std::string_view> order_;
  std::unordered_map<std::string_view, declaration> variables_;
  std::vector<std::string_view> variable_order_;
  std::unordered_map<std::string_view, std::uint64_t> addresses_;
  std::unordered_map<int, std::string> files_;
  std::map<std::string, std::unique_ptr<program>> kernels_;
};

}  // namespace ptx

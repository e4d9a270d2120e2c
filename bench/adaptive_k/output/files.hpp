// Output: a file is written whole or not at all, never over one that is read, and every failure is
// reported.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// One file while it is written. A regular file is replaced only by `commit`: until then, and where
/// anything fails, what was there stays. It keeps its permissions; a symbolic link stays one.
/// Devices and pipes, and the files behind stdout and stderr, are written in place.
/// Everything throws failure, naming option and file.
class output_file {
 public:
  /// A named pipe waits some seconds for a reader.
  output_file(std::string option, std::filesystem::path file);
  ~output_file();
  output_file(const output_file&) = delete;
  output_file& operator=(const output_file&) = delete;

  void write(std::string_view bytes);
  void commit();

 private:
  [[noreturn]] void refuse(int error) const;
  void discard() noexcept;

  std::string option_;
  std::filesystem::path file_;    ///< as given
  std::filesystem::path target_;  ///< behind symbolic links
  std::filesystem::path unborn_;  ///< what `commit` renames to the target; "": written in place
  int descriptor_ = -1;
};

/// The whole of `bytes` into `file`, or no change.
void write_file(const std::string& option, const std::filesystem::path& file,
                std::string_view bytes);

/// Throws failure when `file` (neither "" nor "-") could not be written: before a long run, not
/// after it. Leaves no file behind. One that is only appended to needs no right to its folder.
void check_writable(const std::string& option, const std::string& file, bool is_appended = false);

/// Opens for appending, and creates; a named pipe waits some seconds for a reader, and then never
/// blocks. Throws failure.
int open_to_append(const std::string& option, const std::filesystem::path& file);

/// write(2) without SIGPIPE: a reader that went away is an error, EPIPE.
std::ptrdiff_t write_some(int descriptor, std::string_view bytes) noexcept;

/// One line of JSON; text that is no UTF-8, as a path may be, with U+FFFD in its place.
template <class Json>
std::string text_of(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// `report` with a newline; "" is no file, "-" stdout. Throws failure when the file cannot be
/// written.
void write_json(const std::string& option, const std::string& file,
                const nlohmann::ordered_json& report);

/// Whether `file` exists and is not a regular file: a pipe, a device, a folder.
bool is_special(const std::filesystem::path& file);

/// The files that one command reads and writes. Throws failure, naming both, as soon as an output,
/// stdout included, is also an input or is written twice.
class file_roles {
 public:
  /// Registers an input. Of a folder a model's files are read. `updated_by`: an option that may
  /// write it.
  void reads(const std::string& what, const std::filesystem::path& file,
             const std::string& updated_by = {});
  /// Registers an output and checks that it can be written. "" is no file, "-" stdout.
  void writes(const std::string& option, const std::string& file, bool is_appended = false);
  /// Whether an output is stdout, under any name: a program reads it, so nothing else is printed.
  bool stdout_is_taken() const noexcept { return !stdout_taken_by_.empty(); }

 private:
  struct role {
    std::string name;
    std::filesystem::path file;
    std::string updated_by;
  };

  std::vector<role> inputs_;
  std::vector<role> outputs_;
  std::string stdout_taken_by_;
};

/// Opens whichever of stdin, stdout and stderr the caller closed, so that no file takes its place;
/// writing to a closed one stays an error.
void claim_standard_streams();

/// Throws std::system_error if what was printed cannot be written; `stdout_problem` will say why.
/// Call it before discarding what would be needed to print again.
void flush_stdout();

/// Closes stdout; why not all that was printed reached it, or "".
std::string stdout_problem();

}  // namespace bench

// One file that a target rewrites for every input: the readers under test take paths.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace fuzz {

/// A folder of this process, gone at its end.
class scratch_folder {
 public:
  scratch_folder()
      : path_(base() / ("adaptive_k_fuzz_" + std::to_string(static_cast<long>(getpid())))) {
    std::filesystem::create_directories(path_);
  }
  scratch_folder(const scratch_folder&) = delete;
  scratch_folder& operator=(const scratch_folder&) = delete;
  ~scratch_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::string& name, const std::string& content) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
    return file;
  }

 private:
  static std::filesystem::path base() {
    const std::filesystem::path memory = "/dev/shm";  // no disk in the way, where there is one
    return access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path();
  }

  std::filesystem::path path_;
};

}  // namespace fuzz

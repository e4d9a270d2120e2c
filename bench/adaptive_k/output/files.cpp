#include "bench/adaptive_k/output/files.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "bench/adaptive_k/failure.hpp"

namespace bench {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds patience{5};  // for a reader to open a named pipe
constexpr mode_t new_file_mode = 0666;       // less the umask

[[noreturn]] void refuse_output(const std::string& option, const fs::path& file, int error) {
  const std::string reason =
      error == ENXIO ? std::string("nothing reads from it") : std::string(std::strerror(error));
  throw failure(fmt::format("{}: {}: cannot be written: {}", option, file.string(), reason));
}

/// The file that `file`'s symbolic links lead to.
fs::path behind_links(fs::path file) {
  constexpr int most_links = 40;
  std::error_code error;
  for (int i = 0; i < most_links && fs::is_symlink(file, error); ++i) {
    const fs::path target = fs::read_symlink(file, error);
    if (error) break;
    file = target.is_absolute() ? target : file.parent_path() / target;
  }
  return file;
}

bool is_same(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/// The standard stream, stdout or stderr, that has this file open; -1 for neither.
int standard_stream_of(const struct stat& file) {
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat opened {};
    if (fstat(stream, &opened) == 0 && is_same(opened, file)) return stream;
  }
  return -1;
}

/// A new, empty file in the folder of `target`; -1 and errno where there can be none.
int create_beside(const fs::path& target, fs::path& created) {
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  for (int i = 0; i < 100; ++i) {
    created = folder / fmt::format(".adaptive-k-{}-{}.tmp", getpid(), i);
    const int descriptor =
        open(created.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, new_file_mode);
    if (descriptor >= 0 || errno != EEXIST) return descriptor;
  }
  return -1;
}

/// open(2) that waits `patience` at most for the reader of a named pipe.
int open_in_place(const fs::path& file, int flags) {
  const auto until = std::chrono::steady_clock::now() + patience;
  for (;;) {
    const int descriptor =
        open(file.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | flags, new_file_mode);
    if (descriptor >= 0 || (errno != ENXIO && errno != EINTR)) return descriptor;
    if (std::chrono::steady_clock::now() > until) return -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

output_file::output_file(std::string option, fs::path file)
    : option_(std::move(option)), file_(std::move(file)), target_(file_) {
  struct stat old {};
  const bool exists = stat(file_.c_str(), &old) == 0;
  if (!exists && errno != ENOENT) refuse(errno);
  // The file that links lead to is replaced. Links in /dev/fd to a pipe lead to no file.
  if (!exists || S_ISREG(old.st_mode)) target_ = behind_links(file_);
  if (exists && S_ISDIR(old.st_mode)) refuse(EISDIR);
  const int stream = exists ? standard_stream_of(old) : -1;
  if (stream >= 0) {  // one position in the file for both, or one would write over the other
    descriptor_ = fcntl(stream, F_DUPFD_CLOEXEC, 0);
    if (descriptor_ < 0) refuse(errno);
    return;
  }
  if (exists && !S_ISREG(old.st_mode)) {
    descriptor_ = open_in_place(target_, 0);
    if (descriptor_ < 0) refuse(errno);
    // The reader is there; from now on writing waits for it.
    fcntl(descriptor_, F_SETFL, fcntl(descriptor_, F_GETFL) & ~O_NONBLOCK);
    return;
  }
  if (exists && access(target_.c_str(), W_OK) != 0) refuse(errno);
  descriptor_ = create_beside(target_, unborn_);
  if (descriptor_ < 0) {
    unborn_.clear();
    refuse(errno);
  }
  if (!exists) return;
  // The owner first: that may take away bits of the mode.
  if ((old.st_uid != geteuid() || old.st_gid != getegid()) &&
      fchown(descriptor_, old.st_uid, old.st_gid) != 0) {
    // Then it is the writer's, as any new file.
  }
  if (fchmod(descriptor_, old.st_mode & 07777) != 0) {
    const int error = errno;
    discard();
    refuse(error);
  }
}

output_file::~output_file() {
  discard();
}

void output_file::discard() noexcept {
  if (descriptor_ >= 0) close(descriptor_);
  descriptor_ = -1;
  if (!unborn_.empty()) unlink(unborn_.c_str());
  unborn_.clear();
}

void output_file::refuse(int error) const {
  refuse_output(option_, file_, error);
}

std::ptrdiff_t write_some(int descriptor, std::string_view bytes) noexcept {
  sigset_t pipe{}, before{};
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, &before);
  const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
  const int error = errno;
  constexpr timespec at_once{0, 0};
  if (written < 0 && error == EPIPE) sigtimedwait(&pipe, nullptr, &at_once);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return written;
}

void output_file::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::ptrdiff_t written = write_some(descriptor_, bytes);
    if (written >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno != EINTR) {
      const int error = errno;
      discard();
      refuse(error);
    }
  }
}

void output_file::commit() {
  const bool in_place = unborn_.empty();
  int error = !in_place && fsync(descriptor_) != 0 ? errno : 0;
  if (close(std::exchange(descriptor_, -1)) != 0 && error == 0) error = errno;
  if (error == 0 && !in_place && rename(unborn_.c_str(), target_.c_str()) != 0) error = errno;
  if (error == 0) unborn_.clear();
  discard();
  if (error != 0) refuse(error);
  if (in_place) return;
  // So that the new name survives a power failure, on file systems that support this.
  const fs::path folder = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
  const int opened = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) return;
  fsync(opened);
  close(opened);
}

void write_file(const std::string& option, const fs::path& file, std::string_view bytes) {
  output_file output(option, file);
  output.write(bytes);
  output.commit();
}

void write_json(const std::string& option, const std::string& file,
                const nlohmann::ordered_json& report) {
  if (file.empty()) return;
  const std::string text =
      report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (file == "-")
    std::fputs(text.c_str(), stdout);  // whether it got there is seen at the end
  else
    write_file(option, file, text);
}

bool is_special(const fs::path& file) {
  struct stat found {};
  return stat(file.c_str(), &found) == 0 && !S_ISREG(found.st_mode);
}

void check_writable(const std::string& option, const std::string& file, bool is_appended) {
  if (file.empty() || file == "-") return;
  std::error_code error;
  // A pipe is not opened, as its reader would see the end of it.
  const bool in_place = is_appended ? fs::exists(file, error) : is_special(file);
  if (!in_place || fs::is_directory(file, error)) {
    const output_file unchanged(option, file);
  } else if (access(file.c_str(), W_OK) != 0) {
    refuse_output(option, file, errno);
  }
}

int open_to_append(const std::string& option, const fs::path& file) {
  const int descriptor = open_in_place(file, O_CREAT | O_APPEND);
  if (descriptor < 0) refuse_output(option, file, errno);
  return descriptor;
}

namespace {

/// Whether both name the same file, also where it does not exist yet. Devices and pipes may be
/// shared, and are none.
bool is_one_file(const fs::path& a, const fs::path& b) {
  if (is_special(a) || is_special(b)) return false;
  std::error_code error;
  if (fs::equivalent(a, b, error)) return true;
  // Absolute first: weakly_canonical leaves a relative path that does not exist relative.
  const fs::path whole = fs::weakly_canonical(fs::absolute(a, error), error);
  return !whole.empty() && whole == fs::weakly_canonical(fs::absolute(b, error), error);
}

/// "-", or a name of the file, pipe or terminal that stdout is: /dev/stdout, or what the shell
/// redirected it to. /dev/null may be shared.
bool is_stdout(const std::string& file) {
  if (file == "-") return true;
  struct stat named {
  }, opened{}, null{};
  if (stat(file.c_str(), &named) != 0 || fstat(STDOUT_FILENO, &opened) != 0) return false;
  if (!is_same(named, opened)) return false;
  return stat("/dev/null", &null) != 0 || !is_same(named, null);
}

/// Whether a file of this name is part of a model.
bool is_of_model(const std::string& name) {
  const auto ends_with = [&](std::string_view end) {
    return name.size() >= end.size() &&
           name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  return name == "config.json" ||
         (name.rfind("model", 0) == 0 &&
          (ends_with(".safetensors") || ends_with(".safetensors.index.json")));
}

/// `read`, or the model's file in that folder, if it is the same file as `output`; else "".
fs::path overlap(const fs::path& read, const fs::path& output) {
  std::error_code error;
  if (!fs::is_directory(read, error)) return is_one_file(read, output) ? read : fs::path();
  for (fs::directory_iterator entry(read, error), end; !error && entry != end;
       entry.increment(error))
    if (is_of_model(entry->path().filename().string()) && is_one_file(entry->path(), output))
      return entry->path();
  return {};
}

void refuse_overlap(const std::string& option, const fs::path& output, const std::string& what,
                    const fs::path& read) {
  const fs::path same = overlap(read, output);
  if (!same.empty())
    throw failure(
        fmt::format("{}: {}: is the {} that this command reads ({}), expected another file", option,
                    output.string(), what, same.string()));
}

}  // namespace

void file_roles::reads(const std::string& what, const fs::path& file,
                       const std::string& updated_by) {
  if (file.empty()) return;
  inputs_.push_back({what, file, updated_by});
  for (const role& output : outputs_)
    if (output.name != updated_by) refuse_overlap(output.name, output.file, what, file);
}

void file_roles::writes(const std::string& option, const std::string& file, bool is_appended) {
  if (file.empty()) return;
  if (is_stdout(file)) {
    const std::string taker = option + " " + file;
    if (stdout_is_taken())
      throw failure(fmt::format("{}, {}: both cannot have stdout", stdout_taken_by_, taker));
    stdout_taken_by_ = taker;
  }
  if (file == "-") return;
  for (const role& input : inputs_)
    if (input.updated_by != option) refuse_overlap(option, file, input.name, input.file);
  for (const role& other : outputs_)
    if (is_one_file(other.file, file))
      throw failure(fmt::format("{}: {}: is also written by {}, expected another file", option,
                                file, other.name));
  check_writable(option, file, is_appended);
  outputs_.push_back({option, file, {}});
}

void claim_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) >= 0 || errno != EBADF) continue;
    // open() takes the lowest free number, this one. Reading from it ends at once, writing fails.
    if (open("/dev/null", O_RDONLY) != stream) return;
  }
}

void flush_stdout() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw std::system_error(errno, std::generic_category(), "stdout");
}

std::string stdout_problem() {
  const bool failed_before = std::ferror(stdout) != 0;
  errno = 0;
  const bool failed = std::fclose(stdout) != 0;
  if (!failed && !failed_before) return "";
  return errno != 0 ? std::strerror(errno) : "not all of it was";
}

}  // namespace bench

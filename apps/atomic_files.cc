#include "apps/atomic_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

[[noreturn]] void Fail(const std::string& path, int error) {
  throw Error(fmt::format("cannot write '{}': {}. Nothing was changed; {}.", path, std::strerror(error),
                          error == ENOSPC ? "free some space and try again" : "choose another place with --out"));
}

// A file of its own name beside the target, removed unless it was renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) : target_(target), path_(target + ".XXXXXX") {
    fd_ = mkstemp(path_.data());
    if (fd_ < 0) Fail(target_, errno);
  }
  TemporaryFile(TemporaryFile&& other) noexcept
      : target_(std::move(other.target_)), path_(std::exchange(other.path_, {})), fd_(std::exchange(other.fd_, -1)) {}
  TemporaryFile& operator=(TemporaryFile&&) = delete;
  ~TemporaryFile() {
    if (fd_ >= 0) close(fd_);
    if (!path_.empty()) unlink(path_.c_str());
  }

  void Write(const std::string& content) {
    for (size_t done = 0; done < content.size();) {
      const ssize_t n = write(fd_, content.data() + done, content.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) Fail(target_, n < 0 ? errno : ENOSPC);
      done += static_cast<size_t>(n);
    }
    const mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd_, 0666 & ~mask) != 0 || fsync(fd_) != 0) Fail(target_, errno);
    if (close(std::exchange(fd_, -1)) != 0) Fail(target_, errno);
  }
  void Rename() {
    if (rename(path_.c_str(), target_.c_str()) != 0) Fail(target_, errno);
    path_.clear();
  }

 private:
  std::string target_, path_;
  int fd_ = -1;
};

}  // namespace

void PrepareFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error && !std::filesystem::is_directory(folder))
    throw Error(fmt::format("cannot make the folder '{}': {}. Choose another with --out.", folder, error.message()));
  TemporaryFile probe(folder + "/.kvrazor-probe");
}

void WriteAtomically(const std::vector<std::pair<std::string, std::string>>& path_and_content) {
  std::vector<TemporaryFile> files;
  for (const auto& [path, content] : path_and_content) {
    files.emplace_back(path);
    files.back().Write(content);
  }
  for (TemporaryFile& file : files) file.Rename();
}

}  // namespace kvrazor::apps

#include "eval/chinese_words.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvrazor/error.h"

extern char** environ;

namespace kvrazor::eval {
namespace {

// Reads a JSON list of texts from the file on stdin, writes the version and a list of lists of words.
constexpr char kProgram[] = R"python(
import json, sys
try:
    import jieba
except ImportError:
    sys.exit(42)
jieba.setLogLevel(60)
texts = json.loads(sys.stdin.buffer.read().decode("utf-8"))
words = [list(jieba.cut(text, cut_all=False)) for text in texts]
sys.stdout.buffer.write(json.dumps({"version": jieba.__version__, "words": words}).encode("utf-8"))
)python";
constexpr int kNoJieba = 42;

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FilePtr = std::unique_ptr<std::FILE, CloseFile>;

// Files without a name instead of pipes: neither side can block the other.
FilePtr NamelessFile() {
  FilePtr file(std::tmpfile());
  if (!file) throw Error(fmt::format("cannot make a temporary file: {}.", std::strerror(errno)));
  fcntl(fileno(file.get()), F_SETFD, FD_CLOEXEC);
  return file;
}

std::string Advice() {
  return fmt::format(
      "Install it (Debian: apt-get install python3-jieba; elsewhere: pip install jieba=={}), or name a Python that has "
      "it in KVRAZOR_PYTHON.",
      kJiebaVersion);
}

}  // namespace

std::vector<std::vector<std::string>> JiebaWords(const std::vector<std::string>& texts) {
  if (texts.empty()) return {};
  const FilePtr in = NamelessFile(), out = NamelessFile();
  const std::string json = nlohmann::json(texts).dump();
  if (std::fwrite(json.data(), 1, json.size(), in.get()) != json.size() || std::fflush(in.get()) != 0)
    throw Error("cannot write a temporary file: is the disk full?");
  std::rewind(in.get());

  const char* chosen = std::getenv("KVRAZOR_PYTHON");
  std::string python = chosen && *chosen ? chosen : "python3", option = "-c", program = kProgram;
  std::array<char*, 4> arguments = {python.data(), option.data(), program.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fileno(in.get()), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fileno(out.get()), STDOUT_FILENO);
  pid_t pid = 0;
  const int error = posix_spawnp(&pid, python.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    throw Error(fmt::format("words of Chinese texts need the Python package jieba {}, but '{}' cannot be run: {}. {}",
                            kJiebaVersion, python, std::strerror(error), Advice()));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoJieba)
    throw Error(fmt::format("words of Chinese texts need the Python package jieba {}, which '{}' does not have. {}",
                            kJiebaVersion, python, Advice()));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw Error(
        fmt::format("'{}' failed while splitting Chinese texts into words (status {}). {}", python, status, Advice()));

  std::rewind(out.get());
  const nlohmann::json result = nlohmann::json::parse(out.get(), nullptr, /*allow_exceptions=*/false);
  if (!result.is_object() || !result.contains("words"))
    throw Error(fmt::format("'{}' gave no words for Chinese texts. {}", python, Advice()));
  if (result.at("version") != kJiebaVersion)
    throw Error(fmt::format("'{}' has jieba {}; published scores come from {}. {}", python,
                            result.at("version").get<std::string>(), kJiebaVersion, Advice()));
  return result.at("words");
}

}  // namespace kvrazor::eval

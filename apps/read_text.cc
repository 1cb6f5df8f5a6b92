#include "apps/read_text.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "kvrazor/error.h"

namespace kvrazor::apps {

std::string ReadTextFile(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 30;
  struct Close {
    void operator()(std::FILE* file) const {
      if (file != stdin) std::fclose(file);
    }
  };
  const std::unique_ptr<std::FILE, Close> file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (!file) throw Error(fmt::format("cannot open the text '{}': {}.", path, std::strerror(errno)));
  std::string text;
  char chunk[65536];
  errno = 0;
  for (size_t n; (n = std::fread(chunk, 1, sizeof(chunk), file.get())) > 0;) {
    text.append(chunk, n);
    if (text.size() > kMaxBytes)
      throw Error(fmt::format("the text '{}' is longer than 1 GiB. Give a shorter one.", path));
  }
  if (std::ferror(file.get())) throw Error(fmt::format("cannot read the text '{}': {}.", path, std::strerror(errno)));
  if (text.empty()) throw Error(fmt::format("the text '{}' is empty. Give a file with text.", path));
  return text;
}

}  // namespace kvrazor::apps

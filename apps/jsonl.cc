#include "apps/jsonl.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "apps/atomic_files.h"
#include "apps/read_text.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

Json ParseLine(const std::string& text, const std::string& path, size_t number) {
  Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object())
    throw Error(
        fmt::format("'{}', line {}: not a JSON object. The file must hold one object a line, in UTF-8.", path, number));
  return line;
}

std::vector<Json> ParseLines(const std::string& text, const std::string& path) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(ParseLine(line, path, number));
  }
  return lines;
}

}  // namespace

std::vector<Json> ReadJsonLines(const std::string& path) {
  std::vector<Json> lines = ParseLines(ReadTextFile(path), path);
  if (lines.empty()) throw Error(fmt::format("'{}' holds no line. One JSON object a line is expected.", path));
  return lines;
}

template <typename T>
T FieldOf(const Json& line, const char* field, const std::string& path, size_t number) {
  const auto found = line.find(field);
  if (found == line.end()) throw Error(fmt::format("'{}', line {}: the field \"{}\" is missing.", path, number, field));
  try {
    return found->get<T>();
  } catch (const Json::exception&) {
    throw Error(fmt::format("'{}', line {}: the field \"{}\" is {}, which is not what belongs there.", path, number,
                            field, found->type_name()));
  }
}
template std::string FieldOf<std::string>(const Json&, const char*, const std::string&, size_t);
template std::vector<std::string> FieldOf<std::vector<std::string>>(const Json&, const char*, const std::string&,
                                                                    size_t);
template int64_t FieldOf<int64_t>(const Json&, const char*, const std::string&, size_t);
template double FieldOf<double>(const Json&, const char*, const std::string&, size_t);

LineJournal::LineJournal(std::string path) : path_(std::move(path)) {
  std::string text;
  if (std::filesystem::exists(path_)) {
    std::ifstream file(path_, std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(file), {});
    const size_t whole = text.find_last_of('\n') + 1;  // 0 if there is none
    lines_ = ParseLines(text.substr(0, whole), path_);
    if (whole < text.size() && truncate(path_.c_str(), static_cast<off_t>(whole)) != 0)
      throw Error(fmt::format("cannot cut the unfinished line off '{}': {}.", path_, std::strerror(errno)));
  }
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0)
    throw Error(fmt::format("cannot write '{}': {}. Choose another place with --out.", path_, std::strerror(errno)));
}

LineJournal::LineJournal(LineJournal&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), lines_(std::move(other.lines_)) {}

LineJournal::~LineJournal() {
  if (fd_ >= 0) close(fd_);
}

void LineJournal::Append(const Json& line) {
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw Error(
          fmt::format("cannot write '{}': {}. What was written before is kept; free some space and run the same "
                      "command again.",
                      path_, std::strerror(n < 0 ? errno : ENOSPC)));
    done += static_cast<size_t>(n);
  }
  fdatasync(fd_);
  lines_.push_back(Json::parse(text));
}

bool OpenRunFolder(const std::string& folder, const Json& settings) {
  PrepareFolder(folder);
  const std::string path = folder + "/run.json";
  if (!std::filesystem::exists(path)) {
    WriteAtomically({{path, settings.dump(2) + "\n"}});
    return false;
  }
  std::ifstream file(path);
  const Json there = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (there == settings) return true;
  std::string differences;
  for (const auto& [name, value] : settings.items()) {
    const bool same = there.is_object() && there.contains(name) && there.at(name) == value;
    if (!same)
      differences +=
          fmt::format("\n  {}: there {}, now {}", name,
                      there.is_object() && there.contains(name) ? there.at(name).dump() : "nothing", value.dump());
  }
  throw Error(
      fmt::format("'{}' holds another run:{}\nUse another --out, remove that folder, or repeat the run with its own "
                  "settings.",
                  folder, differences));
}

std::string Fingerprint(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

}  // namespace kvrazor::apps

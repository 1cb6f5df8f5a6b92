// Files with one JSON document a line, and folders that hold what an interrupted run has done so far.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kvrazor::apps {

using Json = nlohmann::ordered_json;

/// Every line of the file ("-" is stdin); lines of white space are skipped. Throws Error naming the file and the line that is
/// no JSON object, or if there is none.
std::vector<Json> ReadJsonLines(const std::string& path);

/// A field of such a line. Throws Error naming the file, the line (from 1) and what is missing or has another type.
template <typename T>
T FieldOf(const Json& line, const char* field, const std::string& path, size_t number);

/// A file that grows by whole lines: an interruption loses at most the line being written.
class LineJournal {
 public:
  /// Reads what is there. A last line without its end, left by an interruption, is cut off. Throws Error.
  explicit LineJournal(std::string path);
  LineJournal(LineJournal&& other) noexcept;
  LineJournal& operator=(LineJournal&&) = delete;
  ~LineJournal();

  const std::vector<Json>& lines() const { return lines_; }
  /// Written and on the disk when this returns.
  void Append(const Json& line);

 private:
  std::string path_;
  int fd_ = -1;
  std::vector<Json> lines_;
};

/// Prepares DIR for a run with these settings: DIR/run.json holds them. What is there of a run with the same settings is kept
/// and `true` returned; without run.json it is created. Throws Error naming the settings that differ.
bool OpenRunFolder(const std::string& folder, const Json& settings);

/// Stands for a text in settings: FNV-1a of its bytes, 16 hexadecimal digits.
std::string Fingerprint(const std::string& text);

}  // namespace kvrazor::apps

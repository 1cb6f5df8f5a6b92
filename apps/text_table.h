// Columns of text, aligned by their widest cell.
#pragma once

#include <string>
#include <vector>

namespace kvrazor::apps {

class TextTable {
 public:
  /// Columns whose heading starts with '<' are aligned to the left, all others to the right.
  explicit TextTable(std::vector<std::string> headings);
  void Add(std::vector<std::string> cells);
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<bool> left_;
};

/// Columns that a terminal shows for UTF-8 text (one a character).
size_t DisplayWidth(const std::string& text);
/// Lines of at most `width` columns, each after `indent`; control characters become spaces.
std::string Wrapped(const std::string& text, size_t width, const std::string& indent);
/// The text with everything that is not UTF-8 or that steers a terminal replaced by '?': names out of files go through it.
std::string Printable(const std::string& text);
/// "12.3 MiB" and so on.
std::string Bytes(double bytes);

}  // namespace kvrazor::apps

// Progress of long work on stderr: a bar with the time left on a terminal, one line a stage otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace kvrazor::apps {

class Progress {
 public:
  /// quiet: shows nothing.
  explicit Progress(bool quiet);
  ~Progress();

  /// A new stage name starts a new bar.
  void Update(const std::string& stage, int64_t done, int64_t total);
  /// A line that stays, for example a result; above the bar.
  void Line(const std::string& text);
  /// Takes the bar away.
  void Done() { Clear(); }

 private:
  void Clear();

  bool quiet_;
  bool terminal_;
  bool bar_shown_ = false;
  std::string stage_;
  std::chrono::steady_clock::time_point start_, shown_;
};

}  // namespace kvrazor::apps

#include "apps/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace kvrazor::apps {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kBarWidth = 24;
constexpr auto kRedrawEvery = std::chrono::milliseconds(100);

std::string Duration(double seconds) {
  const int64_t s = static_cast<int64_t>(seconds + 0.5);
  return s < 60 ? fmt::format("{}s", s) : fmt::format("{}m{:02}s", s / 60, s % 60);
}

}  // namespace

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { Clear(); }

void Progress::Clear() {
  if (bar_shown_) std::fputs("\r\033[K", stderr);
  bar_shown_ = false;
}

void Progress::Line(const std::string& text) {
  if (quiet_) return;
  Clear();
  std::fputs((text + "\n").c_str(), stderr);
}

void Progress::Update(const std::string& stage, int64_t done, int64_t total) {
  if (quiet_) return;
  const auto now = Clock::now();
  const bool is_new = stage != stage_;
  if (is_new) {
    stage_ = stage;
    start_ = now;
    if (!terminal_) Line(stage);
  }
  if (!terminal_ || (!is_new && done < total && now - shown_ < kRedrawEvery)) return;
  shown_ = now;
  const double share = total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 0.0;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string left =
      share > 0.02 && share < 1 ? fmt::format("{} left", Duration(seconds / share * (1 - share))) : Duration(seconds);
  fmt::print(stderr, "\r\033[K{:<30} [{}{}] {:3.0f} %  {}", stage, std::string(filled, '#'),
             std::string(kBarWidth - filled, '.'), 100 * share, left);
  std::fflush(stderr);
  bar_shown_ = true;
}

}  // namespace kvrazor::apps

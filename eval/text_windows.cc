#include "eval/text_windows.h"

#include <fmt/format.h>

#include "kvrazor/error.h"

namespace kvrazor::eval {

std::vector<int64_t> WindowStarts(int64_t text_tokens, const WindowChoice& choice) {
  const int64_t stride = choice.stride > 0 ? choice.stride : choice.window;
  std::vector<int64_t> starts;
  for (int64_t start = 0; start + choice.window <= text_tokens; start += stride) {
    if (choice.windows > 0 && std::ssize(starts) == choice.windows) break;
    starts.push_back(start);
  }
  if (starts.empty())
    throw Error(
        fmt::format("the text has {} tokens, less than one window of {}. Give a longer text or a shorter "
                    "--window.",
                    text_tokens, choice.window));
  if (choice.windows > std::ssize(starts))
    throw Error(
        fmt::format("--windows {}: the text has {} tokens and holds {} windows of {} that start {} apart. Give a "
                    "longer text or fewer windows.",
                    choice.windows, text_tokens, starts.size(), choice.window, stride));
  return starts;
}

std::vector<int64_t> WindowPositions(const WindowChoice& choice) {
  std::vector<int64_t> positions;
  for (int64_t p = choice.first; p + 1 < choice.window; p += choice.step) positions.push_back(p);
  if (positions.empty())
    throw Error(
        fmt::format("--first {}: a window of {} tokens has positions 0 to {} that a next token follows. Give a "
                    "smaller --first or a longer --window.",
                    choice.first, choice.window, choice.window - 2));
  return positions;
}

ContextBucket BucketOf(int64_t position) {
  constexpr int64_t kWidth = 1024, kEven = 8192;
  if (position < kEven) return {position / kWidth * kWidth, (position / kWidth + 1) * kWidth};
  ContextBucket bucket{kEven, 2 * kEven};
  while (position >= bucket.to) bucket = {bucket.to, 2 * bucket.to};
  return bucket;
}

}  // namespace kvrazor::eval

// Which parts of a text are read, and which of their positions are looked at.
#pragma once

#include <cstdint>
#include <vector>

namespace kvrazor::eval {

struct WindowChoice {
  int64_t window = 2048;  ///< tokens read from an empty cache
  int64_t stride = 0;     ///< from one window's start to the next; 0: the window's own length
  int64_t windows = 0;    ///< at most so many; 0: all that the text holds
  int64_t first = 256;    ///< first position of each window that is looked at
  int64_t step = 1;       ///< every so many positions from there on
};

/// Starts of the windows in a text of so many tokens. Throws Error that says what would fit.
std::vector<int64_t> WindowStarts(int64_t text_tokens, const WindowChoice& choice);
/// Positions in each window: first, first + step ... up to the last but one token. Throws Error if there is none.
std::vector<int64_t> WindowPositions(const WindowChoice& choice);

/// Positions by how many tokens stand before them: [from, to), 1024 tokens each up to 8192, then doubling.
struct ContextBucket {
  int64_t from = 0, to = 0;
};
ContextBucket BucketOf(int64_t position);

}  // namespace kvrazor::eval

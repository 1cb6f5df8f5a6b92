// Which queries go into the second moment where every step of a model is seen: in the llama.cpp plug-in, and in shadow mode, which
// has to seal as the plug-in does. What sampling costs is within noise.
#pragma once

#include <cstdint>

namespace kvrazor {

/// Every how manyth query of a step with num_tokens new tokens is added; 0: none.
///   decode_steps  the layer's, counts steps of few tokens
inline int QueryStride(int64_t num_tokens, int64_t& decode_steps) {
  constexpr int64_t kPrefillTokens = 16;
  constexpr int kPrefillStride = 2, kDecodeSteps = 4;
  if (num_tokens >= kPrefillTokens) return kPrefillStride;
  return decode_steps++ % kDecodeSteps == 0 ? 1 : 0;
}

}  // namespace kvrazor

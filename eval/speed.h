// Tokens per second of a context, and what it writes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "llama.h"

namespace kvrazor::eval {

struct Generation {
  double prefill_tps = 0;  ///< tokens of the prompt over the seconds until its last logits
  double decode_tps = 0;   ///< of the median new token
  int64_t prompt_tokens = 0;
  int64_t decoded_tokens = 0;
  std::string text;  ///< greedy, up to the model's end of generation
  int64_t text_tokens = 0;
};

/// Reads the prompt into the empty context, then decodes `new_tokens` greedily. Decoding goes on after the model has ended its
/// answer (only the timing is used then), so that every cache is timed over equally many tokens. The first pass through a
/// context touches and repacks weights: call WarmUp before. `progress` gets the tokens done, prompt and new ones.
Generation Generate(llama_context* context, std::span<const llama_token> prompt, int64_t new_tokens,
                    const std::function<void(int64_t)>& progress);

/// Runs one batch and one token, then empties the context.
void WarmUp(llama_context* context, std::span<const llama_token> tokens);

struct DepthSpeed {
  int64_t depth = 0;       ///< tokens in the cache before the measurement
  double prefill_tps = 0;  ///< of the batches that end the prompt at this depth; 0 if depth is 0
  double decode_tps = 0;   ///< of the median token decoded after them
};

/// One pass over `tokens` with a stop at each depth (ascending, each at least a batch after the one before).
std::vector<DepthSpeed> MeasureDepths(llama_context* context, std::span<const llama_token> tokens,
                                      std::span<const int64_t> depths, int64_t new_tokens,
                                      const std::function<void(int64_t)>& progress);

}  // namespace kvrazor::eval

#include "eval/speed.h"

#include <fmt/format.h>

#include <chrono>

#include "eval/distribution.h"
#include "eval/model.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Feeds one token and waits for its logits; returns the seconds it took.
double DecodeOne(llama_context* context, llama_token token, int64_t at) {
  const double start = SecondsNow();
  Feed(context, {&token, 1}, at);
  llama_synchronize(context);
  return SecondsNow() - start;
}

}  // namespace

void WarmUp(llama_context* context, std::span<const llama_token> tokens) {
  const size_t count = std::min<size_t>(tokens.size(), llama_n_batch(context));
  Feed(context, tokens.first(count), 0);
  llama_synchronize(context);
  llama_memory_clear(llama_get_memory(context), /*data=*/true);
}

Generation Generate(llama_context* context, std::span<const llama_token> prompt, int64_t new_tokens,
                    const std::function<void(int64_t)>& progress) {
  const int64_t room = llama_n_ctx(context);
  if (std::ssize(prompt) + new_tokens > room)
    throw Error(
        fmt::format("the prompt has {} tokens and {} more are to be written, but the context holds {}. Use a longer "
                    "context (-c) or a "
                    "shorter prompt.",
                    prompt.size(), new_tokens, room));
  const llama_model* model = llama_get_model(context);
  const llama_vocab* vocab = llama_model_get_vocab(model);
  Generation result;
  result.prompt_tokens = std::ssize(prompt);
  const double start = SecondsNow();
  Feed(context, prompt, 0, progress);
  llama_synchronize(context);
  result.prefill_tps = static_cast<double>(prompt.size()) / (SecondsNow() - start);

  std::vector<double> seconds;
  bool ended = false;
  for (int64_t i = 0; i < new_tokens; ++i) {
    const llama_token token = static_cast<llama_token>(ArgMax(LastLogits(context)));
    ended = ended || llama_vocab_is_eog(vocab, token);
    if (!ended) {
      result.text += Piece(model, token);
      ++result.text_tokens;
    }
    seconds.push_back(DecodeOne(context, token, result.prompt_tokens + i));
    if (progress) progress(result.prompt_tokens + i + 1);
  }
  result.decoded_tokens = new_tokens;
  if (!seconds.empty()) result.decode_tps = 1 / Quantile(seconds, 0.5);
  return result;
}

std::vector<DepthSpeed> MeasureDepths(llama_context* context, std::span<const llama_token> tokens,
                                      std::span<const int64_t> depths, int64_t new_tokens,
                                      const std::function<void(int64_t)>& progress) {
  const int64_t batch = llama_n_batch(context);
  std::vector<DepthSpeed> results;
  int64_t at = 0;
  const auto feed_to = [&](int64_t end) {
    if (end <= at) return;
    Feed(context, tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(end - at)), at, [&](int64_t done) {
      if (progress) progress(at + done);
    });
    llama_synchronize(context);
    at = end;
  };
  for (const int64_t depth : depths) {
    if (depth < at || depth + new_tokens > std::min<int64_t>(std::ssize(tokens), llama_n_ctx(context)))
      throw Error(
          fmt::format("bench: depth {} with {} new tokens does not fit after depth {} in {} tokens. Give depths "
                      "further apart, or a "
                      "longer context.",
                      depth, new_tokens, at, std::min<int64_t>(std::ssize(tokens), llama_n_ctx(context))));
    DepthSpeed result{.depth = depth};
    feed_to(std::max(at, depth - batch));
    if (const int64_t timed = depth - at; timed > 0) {
      const double start = SecondsNow();
      feed_to(depth);
      result.prefill_tps = static_cast<double>(timed) / (SecondsNow() - start);
    }
    std::vector<double> seconds;
    for (int64_t i = 0; i < new_tokens; ++i, ++at) {
      seconds.push_back(DecodeOne(context, tokens[static_cast<size_t>(at)], at));
      if (progress) progress(at + 1);
    }
    result.decode_tps = 1 / Quantile(seconds, 0.5);
    results.push_back(result);
  }
  return results;
}

}  // namespace kvrazor::eval

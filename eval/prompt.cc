#include "eval/prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "eval/distribution.h"
#include "eval/model.h"
#include "eval/python_text.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Tokens = std::vector<llama_token>;

std::string TextOf(const llama_model* model, std::span<const llama_token> tokens) {
  std::string text;
  for (const llama_token token : tokens) text += Piece(model, token);
  return text;
}

Tokens Formatted(const llama_model* model, const ChatFormat& format, const PromptItem& item,
                 const std::string& prompt) {
  const bool in_template = item.chat && format.has_template();
  const std::string between = !in_template && !item.answer_start.empty() ? "\n" : "";
  const std::string text = (in_template ? format.Prompt({{"user", prompt}}) : prompt) + between + item.answer_start;
  return Tokenize(model, text, /*add_first=*/!in_template, /*special=*/in_template);
}

}  // namespace

Tokens PromptTokens(const llama_model* model, const ChatFormat& format, const PromptItem& item, int64_t room) {
  Tokens formatted = Formatted(model, format, item, item.prompt);
  if (std::ssize(formatted) <= room) return formatted;
  const int64_t overhead = std::ssize(Formatted(model, format, item, ""));
  const Tokens plain = Tokenize(model, item.prompt, /*add_first=*/true, /*special=*/false);
  // Cut text may become a few more tokens than it was cut from: less is kept until it fits.
  for (int64_t kept = room - overhead; kept >= 2; kept -= std::max<int64_t>(2, std::ssize(formatted) - room)) {
    const size_t half = static_cast<size_t>(kept / 2);
    const std::span<const llama_token> all(plain);
    formatted = Formatted(model, format, item, TextOf(model, all.first(half)) + TextOf(model, all.last(half)));
    if (std::ssize(formatted) <= room) return formatted;
  }
  throw Error(
      fmt::format("{} tokens for prompt and template are too few: the template alone takes {}. Use a longer "
                  "context (-c).",
                  room, overhead));
}

std::string WriteAnswer(llama_context* context, std::span<const llama_token> prompt, const PromptItem& item,
                        const std::function<void(int64_t)>& progress) {
  const llama_model* model = llama_get_model(context);
  const llama_vocab* vocab = llama_model_get_vocab(model);
  if (std::ssize(prompt) + item.max_new_tokens > llama_n_ctx(context))
    throw Error(fmt::format("the prompt has {} tokens and {} more are to be written, but the context holds {}.",
                            prompt.size(), item.max_new_tokens, llama_n_ctx(context)));
  llama_memory_clear(llama_get_memory(context), /*data=*/true);
  Feed(context, prompt, 0, progress);
  int64_t held = std::ssize(prompt);
  std::string text;
  for (int written = 0; written < item.max_new_tokens; ++written) {
    const std::span<const float> logits = LastLogits(context);
    llama_token token = static_cast<llama_token>(ArgMax(logits));
    if (item.one_line && written == 0 && llama_vocab_is_eog(vocab, token)) {
      std::vector<float> others(logits.begin(), logits.end());
      for (llama_token t = 0; t < std::ssize(others); ++t) {
        if (llama_vocab_is_eog(vocab, t)) others[static_cast<size_t>(t)] = -std::numeric_limits<float>::infinity();
      }
      token = static_cast<llama_token>(ArgMax(others));
    }
    if (llama_vocab_is_eog(vocab, token)) break;
    const std::string piece = Piece(model, token);
    text += piece;
    if (item.one_line && written > 0 && piece.find('\n') != std::string::npos) break;
    if (written + 1 == item.max_new_tokens) break;
    Feed(context, {&token, 1}, held++);
    if (progress) progress(held);
  }
  return text;
}

double MatchAll(const std::string& prediction, const std::vector<std::string>& references) {
  if (references.empty()) return 0;
  const std::u32string text = Lower(FromUtf8(prediction));
  int64_t found = 0;
  for (const std::string& reference : references) found += text.find(Lower(FromUtf8(reference))) != text.npos;
  return static_cast<double>(found) / static_cast<double>(references.size());
}

}  // namespace kvrazor::eval

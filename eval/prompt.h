// Questions with known answers: what is asked, and how a model is made to answer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "eval/chat_format.h"
#include "llama.h"

namespace kvrazor::eval {

struct PromptItem {
  std::string task;
  int64_t index = 0;  ///< of its task, from 0
  std::string prompt;
  std::string answer_start;  ///< what the answer is made to begin with
  std::vector<std::string> answers;
  std::vector<std::string> all_classes;
  int64_t length = 0;  ///< as the data set gives it, or tokens asked for
  double depth = -1;   ///< where the needle stands, 0 to 1; -1: does not apply
  int max_new_tokens = 64;
  bool chat = true;       ///< in the model's chat template, if it has one
  bool one_line = false;  ///< the answer ends at the first line break
};

/// Tokens to read. Prompts that do not fit into `room` tokens lose their middle: halves of `room` tokens are kept at both ends,
/// before the chat template is applied (as in LongBench's pred.py). Throws Error if the template alone does not fit.
std::vector<llama_token> PromptTokens(const llama_model* model, const ChatFormat& format, const PromptItem& item,
                                      int64_t room);

/// Empties the context, reads the prompt and writes greedily up to the end of the answer or max_new_tokens. With one_line the
/// first token is never the end. `progress` gets tokens read and written.
std::string WriteAnswer(llama_context* context, std::span<const llama_token> prompt, const PromptItem& item,
                        const std::function<void(int64_t)>& progress);

/// RULER's string_match_all: share of the references that the prediction contains, letter case aside.
double MatchAll(const std::string& prediction, const std::vector<std::string>& references);

}  // namespace kvrazor::eval

// The items of an evaluation, made where the model is.
#pragma once

#include <functional>
#include <vector>

#include "apps/jsonl.h"
#include "eval/chat_format.h"
#include "eval/prompt.h"

namespace kvrazor::apps {

/// Task by task, each in the order of its index. job.source is
///   "longbench"  data (folder), config (folder or empty), datasets [], limit
///   "synthetic"  tasks [], lengths [], depths [] (empty: random), samples, seed, text
/// Throws Error that names the file and line, or what does not fit.
std::vector<eval::PromptItem> MakeItems(const Json& job, const llama_model* model, const eval::ChatFormat& format);

}  // namespace kvrazor::apps

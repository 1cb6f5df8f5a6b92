// The part of evaluations with answers that holds the model: one cache, all items that have no answer yet.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "apps/eval.h"
#include "apps/eval_items.h"
#include "eval/model.h"
#include "eval/prompt.h"

namespace kvrazor::apps {
namespace {

Json LineOf(const eval::PromptItem& item, const std::string& prediction, int64_t prompt_tokens) {
  Json line = {
      {"pred", prediction}, {"answers", item.answers}, {"all_classes", item.all_classes}, {"length", item.length},
      {"task", item.task},  {"index", item.index},     {"prompt_tokens", prompt_tokens}};
  if (item.depth >= 0) line["depth"] = item.depth;
  if (item.all_classes.empty()) line["all_classes"] = nullptr;
  return line;
}

}  // namespace

Json AnswersJob(const Json& job, const OnProgress& progress) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(job.at("cache").get<std::string>());
  progress("loading", 0, 1);
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  const eval::ChatFormat format(model.get());
  const int64_t trained = llama_model_n_ctx_train(model.get());
  const int64_t allowed = job.at("context");
  progress("making prompts", 0, 1);
  const std::vector<eval::PromptItem> items = MakeItems(job, model.get(), format);
  if (items.empty()) throw Error("there is nothing to ask: no data set and no task was named.");

  // What was answered before an interruption: the first lines of each task's file.
  std::map<std::string, std::optional<LineJournal>> journals;
  std::map<std::string, std::vector<Json>> by_task;
  for (const eval::PromptItem& item : items) {
    auto [journal, is_new] = journals.try_emplace(item.task);
    if (!is_new) continue;
    by_task[item.task];
    if (const std::string folder = job.at("folder"); !folder.empty()) {
      journal->second.emplace(fmt::format("{}/{}.jsonl", folder, item.task));
      by_task[item.task] = journal->second->lines();
    }
  }

  struct Question {
    const eval::PromptItem* item;
    std::vector<llama_token> tokens;
  };
  std::vector<Question> questions;
  int64_t longest = 0, total = 0;
  for (const eval::PromptItem& item : items) {
    if (item.index < std::ssize(by_task.at(item.task))) continue;
    const int64_t limit = allowed > 0 ? allowed : trained > 0 ? trained : 8192;
    questions.push_back({&item, eval::PromptTokens(model.get(), format, item, limit - item.max_new_tokens)});
    const int64_t needed = std::ssize(questions.back().tokens) + item.max_new_tokens;
    longest = std::max(longest, needed);
    total += needed;
  }
  for (auto& [task, lines] : by_task) {  // of a longer run, only what was asked for now
    const int64_t asked =
        std::count_if(items.begin(), items.end(), [&](const auto& item) { return item.task == task; });
    if (std::ssize(lines) > asked) lines.resize(static_cast<size_t>(asked));
  }
  double page_bits = 0;
  if (!questions.empty()) {
    const eval::ContextPtr context = eval::MakeContext(
        model.get(), cache,
        {.context = longest, .threads = job.at("threads"), .require = job.at("require") && cache.packed});
    int64_t done = 0;
    for (size_t q = 0; q < questions.size(); ++q) {
      const eval::PromptItem& item = *questions[q].item;
      const std::string prediction = eval::WriteAnswer(context.get(), questions[q].tokens, item, [&](int64_t at) {
        progress(fmt::format("{} {}/{}", item.task, q + 1, questions.size()), done + at, total);
      });
      done += std::ssize(questions[q].tokens) + item.max_new_tokens;
      const Json line = LineOf(item, prediction, std::ssize(questions[q].tokens));
      if (auto& journal = journals.at(item.task)) journal->Append(line);
      by_task.at(item.task).push_back(line);
      page_bits = std::max(page_bits, eval::MeasureKv(context.get(), cache).page_bits_per_value);
    }
  } else if (!cache.packed) {
    page_bits = 8.0 * static_cast<double>(ggml_type_size(cache.type)) / static_cast<double>(ggml_blck_size(cache.type));
  }
  return {{"mode", cache.packed ? "packed" : "llama.cpp"}, {"page_bits_per_value", page_bits}, {"by_task", by_task}};
}

}  // namespace kvrazor::apps

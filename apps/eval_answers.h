// Evaluations in which a model writes answers: what they share. Each item is asked with each cache; a prediction is one line
// {pred, answers, all_classes, length, task, index[, depth]} in DIR/CACHE/TASK.jsonl.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "apps/eval.h"
#include "apps/progress.h"

namespace kvrazor::apps {

/// What a worker found out about a cache, and its predictions by task.
struct CacheAnswers {
  std::string cache, mode;
  double page_bits = 0;
  std::map<std::string, std::vector<Json>> by_task;
};

/// A folder's name for a cache: the name itself where it is harmless, else made unique.
std::string FolderName(const std::string& cache);

/// Runs the job in a worker, once a cache. `job` holds "source" (see AnswersJob) and what that source needs; `settings` is what
/// a run that goes on must have in common. Finished predictions are kept in options.out, if that is not empty.
std::vector<CacheAnswers> AskAll(const ModelOptions& options, const std::vector<std::string>& caches, Json job,
                                 const Json& settings);

/// {evaluation, model, machine, commit, command, threads}.
Json ReportHead(const std::string& evaluation, const ModelOptions& options, const Invocation& invocation);

/// results: [{recipe, mode, page_bits_per_value, average, tasks: [{task, lines, score[, buckets, cells]}]}], scores 0 to 100.
std::string AnswersTable(const Json& report);
std::string AnswersHtml(const Json& report, const std::string& how);

/// Writes DIR/NAME.json and DIR/index.html, prints the table or the JSON, and checks `fail_if`.
void ShowAnswers(const Json& report, const ModelOptions& options, const std::string& how,
                 const std::vector<std::string>& fail_if);

}  // namespace kvrazor::apps

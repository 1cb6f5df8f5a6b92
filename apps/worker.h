// Work in a process of its own, so that its peak memory is its own and a crash in it is an error here. The program runs
// itself as `kvrazor worker`: a job comes in on stdin as one JSON document, events go out on stdout as one JSON document a line.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace kvrazor::apps {

using Json = nlohmann::ordered_json;
using OnProgress = std::function<void(const std::string& stage, int64_t done, int64_t total)>;

/// Starts a worker with the job, waits for its result. `inherited_fd` (or -1) keeps its number in the worker. The worker ends
/// with this process. Throws what the worker threw (UsageError, RequirementError, Error), Interrupted, or Error with the last
/// lines the worker wrote to stderr if it died.
Json RunWorker(const Json& job, int inherited_fd, const OnProgress& progress);

/// The worker's side: reads the job, runs it, writes events. Returns the exit status.
int WorkerMain();

/// Jobs, by their "kind".
Json CompareJob(const Json& job, const OnProgress& progress);
Json BenchJob(const Json& job, const OnProgress& progress);
Json CalibrateJob(const Json& job, const OnProgress& progress);
Json AccuracyJob(const Json& job, const OnProgress& progress);
Json AnalyzeJob(const Json& job, const OnProgress& progress);
Json AnswersJob(const Json& job, const OnProgress& progress);
Json ExplainJob(const Json& job, const OnProgress& progress);

}  // namespace kvrazor::apps

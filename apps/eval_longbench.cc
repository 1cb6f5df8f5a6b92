// kvrazor eval longbench: asks a model, or scores predictions that exist already.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>

#include "apps/eval_answers.h"
#include "apps/failures.h"
#include "apps/text_table.h"
#include "eval/cache_choice.h"
#include "eval/chinese_words.h"
#include "eval/longbench.h"

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "LongBench v1 and LongBench-E: answers and scores.\n"
    "Asks a model the questions of LongBench data sets with several KV caches and scores the answers with the metrics "
    "of "
    "THUDM/LongBench; or scores predictions that exist already (--score). Prompts that are too long lose their middle, "
    "answers are "
    "as long as the original's, and all but the few-shot and code tasks are asked in the model's chat template, as the "
    "original "
    "does.\n"
    "--data names a folder with one TASK.jsonl a data set: the data set's own lines {input, context, answers, length, "
    "all_classes}, "
    "for which --config names LongBench's own config folder (dataset2prompt.json, dataset2maxlen.json), or lines with "
    "whole "
    "prompts {prompt, answers}, as MiniLongBench has them. --score FILE reads one JSON object a line: {task, "
    "prediction, "
    "answers[, all_classes]}, or a prediction file of the original, {pred, answers, all_classes[, length]}, which is "
    "named after "
    "its task. Chinese texts of multifieldqa_zh, dureader and vcsum are split into words by the Python package jieba "
    "(Debian: "
    "python3-jieba).";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor eval longbench -m model.gguf --data longbench --datasets qasper,trec,lcc --caches f16,razor-2 --out "
    "results\n"
    "  kvrazor eval longbench -m model.gguf --data LongBench/data --config LongBench/config --datasets qasper_e,lcc_e\n"
    "  kvrazor eval longbench --score predictions.jsonl             averages by task\n"
    "  kvrazor eval longbench --score predictions.jsonl --json      every line again, with its \"score\" in 0 to 1\n\n"
    "FILES\n"
    "  With --out DIR: DIR/longbench.json, DIR/index.html, DIR/run.json (settings), DIR/CACHE/TASK.jsonl (predictions "
    "in the\n"
    "  original's format; the same command goes on after the last line, more caches can be added).\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 3 --require or --fail-if; 130 interrupted.";
constexpr char kHow[] =
    "Metrics, lengths of answers, truncation in the middle and averages are those of THUDM/LongBench; scores are 0 to "
    "100.";

struct Options : ModelOptions {
  std::string score, data, config;
  std::vector<std::string> datasets, fail_if;
  int64_t limit = 0, context = 0;
};

// The original's files are called TASK.jsonl and have "pred" where ours have "prediction".
eval::LongBenchAnswer AnswerOf(const Json& line, const std::string& path, size_t number) {
  eval::LongBenchAnswer answer;
  const bool original = !line.contains("prediction") && line.contains("pred");
  answer.task = original && !line.contains("task") ? std::filesystem::path(path).stem().string()
                                                   : FieldOf<std::string>(line, "task", path, number);
  answer.prediction = FieldOf<std::string>(line, original ? "pred" : "prediction", path, number);
  answer.answers = FieldOf<std::vector<std::string>>(line, "answers", path, number);
  if (line.contains("all_classes") && !line.at("all_classes").is_null())
    answer.all_classes = FieldOf<std::vector<std::string>>(line, "all_classes", path, number);
  const bool needs_classes = eval::FindLongBenchTask(answer.task).metric == eval::LongBenchMetric::kClassification;
  if (needs_classes && answer.all_classes.empty())
    throw Error(fmt::format("'{}', line {}: the task {} needs the field \"all_classes\".", path, number, answer.task));
  return answer;
}

void ScoreFile(const Options& options) {
  std::vector<Json> lines = ReadJsonLines(options.score);
  std::vector<eval::LongBenchAnswer> answers;
  for (size_t i = 0; i < lines.size(); ++i) answers.push_back(AnswerOf(lines[i], options.score, i + 1));
  const std::vector<double> scores = eval::ScoreLongBench(answers, eval::JiebaWords);
  if (options.json) {
    for (size_t i = 0; i < lines.size(); ++i) {
      lines[i]["score"] = scores[i];
      fmt::print("{}\n", lines[i].dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    return;
  }
  std::map<std::string, std::vector<double>> by_task;
  for (size_t i = 0; i < answers.size(); ++i) by_task[answers[i].task].push_back(scores[i]);
  TextTable table({"<task", "lines", "score"});
  for (const auto& [task, values] : by_task)
    table.Add({task, fmt::format("{}", values.size()), fmt::format("{:.2f}", eval::LongBenchAverage(values))});
  fmt::print("{}", table.Text());
}

std::vector<double> ScoresOf(const std::string& task, const std::vector<Json>& lines) {
  std::vector<eval::LongBenchAnswer> answers;
  for (size_t i = 0; i < lines.size(); ++i) answers.push_back(AnswerOf(lines[i], task + ".jsonl", i + 1));
  return eval::ScoreLongBench(answers, eval::JiebaWords);
}

// LongBench-E: the average of each bucket of lengths, null where it holds no line.
Json Buckets(const std::vector<Json>& lines, const std::vector<double>& scores) {
  std::vector<std::vector<double>> by_bucket(std::size(eval::kLengthBuckets));
  for (size_t i = 0; i < lines.size(); ++i)
    by_bucket[static_cast<size_t>(eval::LengthBucket(lines[i].at("length")))].push_back(scores[i]);
  Json buckets;
  for (size_t b = 0; b < by_bucket.size(); ++b)
    buckets[std::string(eval::kLengthBuckets[b])] =
        by_bucket[b].empty() ? Json(nullptr) : Json(eval::LongBenchAverage(by_bucket[b]));
  return buckets;
}

Json ResultOf(const CacheAnswers& answers, const std::vector<std::string>& datasets) {
  Json result = {
      {"recipe", answers.cache}, {"mode", answers.mode}, {"page_bits_per_value", answers.page_bits}, {"average", 0.0}};
  double sum = 0;
  for (const std::string& dataset : datasets) {
    const std::vector<Json>& lines = answers.by_task.at(dataset);
    const std::vector<double> scores = ScoresOf(dataset, lines);
    Json entry = {{"task", dataset},
                  {"lines", lines.size()},
                  {"score", eval::LongBenchAverage(scores)},
                  {"buckets", Buckets(lines, scores)}};
    sum += entry.at("score").get<double>();
    result["tasks"].push_back(entry);
  }
  result["average"] = sum / static_cast<double>(datasets.size());
  return result;
}

void Ask(const Options& options, const Invocation& invocation) {
  if (options.model.empty() || options.data.empty() || options.datasets.empty())
    throw UsageError("give -m, --data and --datasets to ask a model, or --score FILE to score predictions.");
  for (const std::string& dataset : options.datasets) eval::FindLongBenchTask(dataset);
  const std::vector<std::string> caches = eval::SplitCacheNames(options.caches);
  // Data sets have files of their own and are asked in order: more of them, and more lines, can be added to a run.
  const Json settings = {{"evaluation", "longbench"},
                         {"model", ModelSettings(options.model)},
                         {"data", options.data},
                         {"config", options.config},
                         {"context", options.context}};
  Json job = settings;
  job["datasets"] = options.datasets;
  job["limit"] = options.limit;
  job["source"] = "longbench";
  Json report = ReportHead("longbench", options, invocation);
  report["context"] = options.context;
  report["limit"] = options.limit;
  for (const CacheAnswers& answers : AskAll(options, caches, job, settings))
    report["results"].push_back(ResultOf(answers, options.datasets));
  ShowAnswers(report, options, kHow, options.fail_if);
}

}  // namespace

void AddEvalLongBench(CLI::App& eval, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = eval.add_subcommand("longbench", kDescription);
  command->footer(kFooter);
  command->add_option("--score", options->score, "Predictions to score; - is stdin");
  AddModelOptions(*command, *options, "Folder for predictions and report, and for going on after an interruption");
  command->add_option("--data", options->data, "Folder with TASK.jsonl files");
  command->add_option("--config", options->config, "LongBench's config folder, for lines without whole prompts");
  command
      ->add_option("--datasets", options->datasets,
                   "Data sets, separated by commas; names ending in _e are LongBench-E's")
      ->delimiter(',');
  command->add_option("--limit", options->limit, "Ask only the first so many lines of each data set")
      ->check(CLI::PositiveNumber);
  command
      ->add_option(
          "-c,--context", options->context,
          "Tokens of prompt and answer; longer prompts lose their middle. By default what the model was trained for")
      ->check(CLI::Range(int64_t{256}, int64_t{1} << 31));
  command->add_option("--fail-if", options->fail_if, "Exit status 3 if this holds for any cache but f16: 'average<40'")
      ->allow_extra_args(false);
  command->callback([options, &invocation] {
    if (options->score.empty())
      Ask(*options, invocation);
    else
      ScoreFile(*options);
  });
}

}  // namespace kvrazor::apps

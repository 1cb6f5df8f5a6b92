// kvrazor eval needle, passkey, ruler: tasks made from random words and numbers.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "apps/eval_answers.h"
#include "apps/failures.h"
#include "apps/read_text.h"
#include "eval/cache_choice.h"
#include "eval/longbench.h"
#include "eval/prompt.h"
#include "eval/synthetic_tasks.h"

namespace kvrazor::apps {
namespace {

struct Options : ModelOptions {
  std::string text;
  std::vector<std::string> tasks;
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  std::vector<double> depths;
  int64_t samples = 1, seed = 1;
  std::vector<std::string> fail_if;
};

struct Kind {
  const char* name;
  const char* description;
  const char* how;
};

constexpr Kind kNeedle = {"needle",
                          "Needle in a haystack, by depth and length.\n"
                          "Hides one sentence with a random number at several depths of texts of several lengths and "
                          "asks for the number. Shown as a "
                          "map of depth and length.",
                          "A sentence with a random number of 7 digits is hidden at the given depth of a text of the "
                          "given length; the answer counts "
                          "if it contains the number."};
constexpr Kind kPasskey = {"passkey",
                           "Find a pass key among repeated sentences, by depth and length.\n"
                           "Hides a random pass key of 5 digits among repeated sentences and asks for it.",
                           "A pass key of 5 digits is hidden at the given depth among repeated sentences; the answer "
                           "counts if it contains the key."};
constexpr Kind kRuler = {
    "ruler",
    "Retrieval, tracing and aggregation after RULER.\n"
    "Tasks of RULER's kinds (arXiv:2404.06654) with texts of our own: niah_single, niah_multikey (4 keys, 1 asked "
    "for), "
    "niah_multivalue (1 key, 4 values), niah_multiquery (4 keys asked for), vt (variable tracking, 4 hops), cwe (the "
    "10 most "
    "common words). Scored as RULER does: share of the expected strings that the answer contains.",
    "Tasks of RULER's kinds with texts of our own; score: share of the expected strings that the answer contains."};

// Mean of the scores of lines with equal values of `fields`, in the order of the lines.
Json Grouped(const std::vector<Json>& lines, const std::vector<const char*>& fields) {
  std::vector<Json> keys;
  std::vector<std::vector<double>> scores;
  for (const Json& line : lines) {
    Json key;
    for (const char* field : fields) key[field] = line.at(field);
    const size_t at = static_cast<size_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
    if (at == keys.size()) {
      keys.push_back(key);
      scores.emplace_back();
    }
    scores[at].push_back(eval::MatchAll(line.at("pred"), line.at("answers")));
  }
  Json groups = Json::array();
  for (size_t i = 0; i < keys.size(); ++i) {
    Json group = keys[i];
    group["lines"] = scores[i].size();
    group["score"] = eval::LongBenchAverage(scores[i]);
    groups.push_back(group);
  }
  return groups;
}

Json ResultOf(const CacheAnswers& answers, const std::vector<std::string>& tasks) {
  Json result = {
      {"recipe", answers.cache}, {"mode", answers.mode}, {"page_bits_per_value", answers.page_bits}, {"average", 0.0}};
  double sum = 0;
  for (const std::string& task : tasks) {
    const std::vector<Json>& lines = answers.by_task.at(task);
    std::vector<double> scores;
    for (const Json& line : lines) scores.push_back(eval::MatchAll(line.at("pred"), line.at("answers")));
    Json entry = {{"task", task},
                  {"lines", lines.size()},
                  {"score", eval::LongBenchAverage(scores)},
                  {"lengths", Grouped(lines, {"length"})}};
    if (lines.front().contains("depth")) entry["cells"] = Grouped(lines, {"length", "depth"});
    sum += entry.at("score").get<double>();
    result["tasks"].push_back(entry);
  }
  result["average"] = sum / static_cast<double>(tasks.size());
  return result;
}

void Ask(const Options& options, const Kind& kind, const Invocation& invocation) {
  const std::vector<std::string> caches = eval::SplitCacheNames(options.caches);
  for (const double depth : options.depths) {
    if (depth < 0 || depth > 100) throw UsageError(fmt::format("--depths {}: percent from 0 to 100.", depth));
  }
  for (const std::string& task : options.tasks) {
    const auto known = eval::SyntheticTasks();
    if (std::find(known.begin(), known.end(), task) == known.end())
      throw UsageError(fmt::format("--tasks: no task '{}'. See kvrazor eval {} --help.", task, kind.name));
  }
  std::vector<double> depths;
  for (const double depth : options.depths) depths.push_back(depth / 100);
  const std::string text = options.text.empty() ? "" : ReadTextFile(options.text);
  Json settings = {{"evaluation", kind.name}, {"model", ModelSettings(options.model)},
                   {"tasks", options.tasks},  {"lengths", options.lengths},
                   {"depths", depths},        {"samples", options.samples},
                   {"seed", options.seed},    {"text", options.text.empty() ? "" : Fingerprint(text)}};
  Json job = settings;
  job["source"] = "synthetic";
  job["text"] = text;
  job["context"] = *std::max_element(options.lengths.begin(), options.lengths.end());
  Json report = ReportHead(kind.name, options, invocation);
  report["lengths"] = options.lengths;
  report["samples"] = options.samples;
  report["seed"] = options.seed;
  for (const CacheAnswers& answers : AskAll(options, caches, job, settings))
    report["results"].push_back(ResultOf(answers, options.tasks));
  ShowAnswers(report, options, kind.how, options.fail_if);
}

void AddOne(CLI::App& eval, Invocation& invocation, const Kind& kind, std::vector<std::string> tasks,
            std::vector<double> depths) {
  auto options = std::make_shared<Options>();
  options->tasks = std::move(tasks);
  options->depths = std::move(depths);
  CLI::App* command = eval.add_subcommand(kind.name, kind.description);
  command->footer(
      fmt::format("EXAMPLES\n"
                  "  kvrazor eval {0} -m model.gguf --lengths 1024,4096 --caches f16,razor-2\n"
                  "  kvrazor eval {0} -m model.gguf -f book.txt --lengths 8192 --samples 5 --out results\n\n"
                  "FILES\n"
                  "  With --out DIR: DIR/{0}.json, DIR/index.html, DIR/run.json (settings), DIR/CACHE/TASK.jsonl (one "
                  "answer a line; the same\n"
                  "  command goes on after the last one, more caches can be added).\n\n"
                  "EXIT STATUS\n"
                  "  0 done; 1 failed; 2 wrong usage; 3 --require or --fail-if; 130 interrupted.",
                  kind.name));
  AddModelOptions(*command, *options, "Folder for the report and for going on after an interruption");
  command->get_option("--model")->required();
  command->add_option("-f,--file", options->text,
                      "Text to hide things in, UTF-8; by default a few sentences, repeated");
  if (std::string_view(kind.name) == "ruler")
    command->add_option("--tasks", options->tasks, "Tasks, separated by commas")->delimiter(',')->capture_default_str();
  else
    command
        ->add_option("--depths", options->depths, "Where things are hidden, percent of the text, separated by commas")
        ->delimiter(',')
        ->capture_default_str();
  command->add_option("--lengths", options->lengths, "Tokens of prompt and answer together, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("--samples", options->samples, "Questions a task, length and depth")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the random words and numbers")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--fail-if", options->fail_if, "Exit status 3 if this holds for any cache but f16: 'average<90'")
      ->allow_extra_args(false);
  command->callback([options, &invocation, kind] { Ask(*options, kind, invocation); });
}

}  // namespace

void AddEvalSynthetic(CLI::App& eval, Invocation& invocation) {
  AddOne(eval, invocation, kNeedle, {"needle"}, {0, 25, 50, 75, 100});
  AddOne(eval, invocation, kPasskey, {"passkey"}, {0, 25, 50, 75, 100});
  AddOne(eval, invocation, kRuler, {"niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe"},
         {});
}

}  // namespace kvrazor::apps

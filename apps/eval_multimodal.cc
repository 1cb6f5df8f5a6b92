// kvrazor eval ocrbench and mmau-pro: scores of predictions that exist already.
#include <fmt/format.h>

#include <map>
#include <memory>

#include "apps/eval.h"
#include "apps/read_text.h"
#include "apps/text_table.h"
#include "eval/multimodal_scores.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

constexpr char kOcrDescription[] =
    "OCRBench: scores of predictions.\n"
    "Scores a file in OCRBench's format: a JSON list of {dataset_name, type, question, answers, predict}, answers "
    "being a text or "
    "a list. A question counts if one of its answers is part of the prediction; questions without \"predict\" count as "
    "wrong. "
    "Models are not run: images come with a later version.";
constexpr char kMmauDescription[] =
    "MMAU-Pro: scores of predictions.\n"
    "Scores the multiple-choice questions of a file in MMAU-Pro's format: a JSON list of {question, answer, choices, "
    "category, "
    "model_output}, by the string match of MMAU: all words of the answer are in the prediction and none of those that "
    "only other "
    "choices have. MMAU-Pro's own script uses an embedding model for this, so its figures differ. Questions without "
    "choices need "
    "a judge and are counted, not scored. Models are not run: audio comes with a later version.";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor eval {0} --score predictions.json\n"
    "  kvrazor eval {0} --score predictions.json --json\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage.";

struct Options {
  std::string score;
  bool json = false;
};

std::vector<Json> ReadList(const std::string& path) {
  const Json list = Json::parse(ReadTextFile(path), nullptr, /*allow_exceptions=*/false);
  if (!list.is_array() || list.empty()) throw Error(fmt::format("'{}' is no JSON list of questions.", path));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) throw Error(fmt::format("'{}', question {}: not a JSON object.", path, i + 1));
  }
  return list;
}

std::vector<std::string> TextOrList(const Json& line, const char* field, const std::string& path, size_t number) {
  if (line.contains(field) && line.at(field).is_string()) return {line.at(field).get<std::string>()};
  return FieldOf<std::vector<std::string>>(line, field, path, number);
}

struct Count {
  int64_t hits = 0, questions = 0;
};

void Show(const Options& options, const std::map<std::string, Count>& groups, const char* heading, Json summary) {
  Count all;
  TextTable table({fmt::format("<{}", heading), "right", "questions", "percent"});
  for (const auto& [name, count] : groups) {
    all.hits += count.hits;
    all.questions += count.questions;
  }
  const auto percent = [](const Count& c) {
    return c.questions ? 100.0 * static_cast<double>(c.hits) / static_cast<double>(c.questions) : 0.0;
  };
  for (const auto& [name, count] : groups) {
    table.Add({name, fmt::format("{}", count.hits), fmt::format("{}", count.questions),
               fmt::format("{:.2f}", percent(count))});
    summary["groups"].push_back(
        {{"name", name}, {"right", count.hits}, {"questions", count.questions}, {"score", percent(count)}});
  }
  summary["right"] = all.hits;
  summary["questions"] = all.questions;
  summary["score"] = percent(all);
  if (options.json) {
    fmt::print("{}\n", summary.dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  table.Add(
      {"all", fmt::format("{}", all.hits), fmt::format("{}", all.questions), fmt::format("{:.2f}", percent(all))});
  fmt::print("{}", table.Text());
  if (summary.value("not_scored", 0) > 0)
    fmt::print("{} questions without choices are not scored.\n", summary.at("not_scored").get<int64_t>());
}

void ScoreOcr(const Options& options) {
  std::map<std::string, Count> groups;
  const std::vector<Json> questions = ReadList(options.score);
  for (size_t i = 0; i < questions.size(); ++i) {
    const Json& q = questions[i];
    Count& group = groups[std::string(eval::OcrBenchGroup(FieldOf<std::string>(q, "type", options.score, i + 1)))];
    const bool answered = q.contains("predict") && q.at("predict").is_string();
    const std::string prediction = answered ? q.at("predict").get<std::string>() : "";
    group.hits += eval::OcrBenchHit(FieldOf<std::string>(q, "dataset_name", options.score, i + 1), prediction,
                                    TextOrList(q, "answers", options.score, i + 1));
    ++group.questions;
  }
  Show(options, groups, "group", {{"evaluation", "ocrbench"}});
}

void ScoreMmau(const Options& options) {
  std::map<std::string, Count> groups;
  int64_t not_scored = 0;
  const std::vector<Json> questions = ReadList(options.score);
  for (size_t i = 0; i < questions.size(); ++i) {
    const Json& q = questions[i];
    if (!q.contains("choices") || !q.at("choices").is_array() || q.at("choices").empty()) {
      ++not_scored;
      continue;
    }
    Count& group = groups[FieldOf<std::string>(q, "category", options.score, i + 1)];
    group.hits += eval::ChoiceHit(FieldOf<std::string>(q, "model_output", options.score, i + 1),
                                  FieldOf<std::string>(q, "answer", options.score, i + 1),
                                  FieldOf<std::vector<std::string>>(q, "choices", options.score, i + 1));
    ++group.questions;
  }
  Show(options, groups, "category",
       {{"evaluation", "mmau-pro"}, {"method", "string match"}, {"not_scored", not_scored}});
}

void AddOne(CLI::App& eval, const char* name, const char* description, void (*score)(const Options&)) {
  auto options = std::make_shared<Options>();
  CLI::App* command = eval.add_subcommand(name, description);
  command->footer(fmt::format(kFooter, name));
  command->add_option("--score", options->score, "Predictions to score; - is stdin")->required();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options, score] { score(*options); });
}

}  // namespace

void AddEvalMultimodal(CLI::App& eval) {
  AddOne(eval, "ocrbench", kOcrDescription, ScoreOcr);
  AddOne(eval, "mmau-pro", kMmauDescription, ScoreMmau);
}

}  // namespace kvrazor::apps

#include "apps/eval_items.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "eval/longbench.h"
#include "eval/model.h"
#include "eval/python_text.h"
#include "eval/synthetic_tasks.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

Json ReadConfig(const std::string& folder, const char* name) {
  const std::string path = folder + "/" + name;
  std::ifstream file(path);
  if (!file)
    throw Error(fmt::format("cannot open '{}'. --config names the folder with LongBench's dataset2prompt.json.", path));
  Json config = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) throw Error(fmt::format("'{}' is no JSON object.", path));
  return config;
}

// The names behind "Type: " in the examples of prompts: the classes where the data do not list them.
void CollectClasses(const std::string& prompt, std::set<std::string>& classes) {
  constexpr std::string_view kMark = "\nType: ";
  for (size_t at = prompt.find(kMark); at != std::string::npos; at = prompt.find(kMark, at + 1)) {
    const size_t begin = at + kMark.size();
    classes.insert(prompt.substr(begin, prompt.find('\n', begin) - begin));
  }
}

class LongBenchFiles {
 public:
  LongBenchFiles(std::string data, const std::string& config) : data_(std::move(data)) {
    if (config.empty()) return;
    prompts_ = ReadConfig(config, "dataset2prompt.json");
    lengths_ = ReadConfig(config, "dataset2maxlen.json");
  }

  std::vector<eval::PromptItem> Read(const std::string& dataset, int64_t limit) const {
    const eval::LongBenchTask& task = eval::FindLongBenchTask(dataset);
    const std::string path = fmt::format("{}/{}.jsonl", data_, dataset);
    if (!std::filesystem::exists(path))
      throw Error(fmt::format("no '{}'. --data names the folder with one TASK.jsonl a data set.", path));
    const std::vector<Json> lines = ReadJsonLines(path);
    std::vector<eval::PromptItem> items;
    std::set<std::string> classes;
    for (size_t i = 0; i < lines.size(); ++i) {
      items.push_back(ItemOf(lines[i], task, path, i + 1));
      items.back().task = dataset;
      items.back().index = static_cast<int64_t>(i);
      CollectClasses(items.back().prompt, classes);
    }
    if (limit > 0 && std::ssize(items) > limit) items.resize(static_cast<size_t>(limit));
    if (task.metric == eval::LongBenchMetric::kClassification) {
      for (eval::PromptItem& item : items) {
        if (item.all_classes.empty()) item.all_classes.assign(classes.begin(), classes.end());
        if (item.all_classes.empty())
          throw Error(fmt::format("'{}': the task {} needs the field \"all_classes\".", path, dataset));
      }
    }
    return items;
  }

 private:
  eval::PromptItem ItemOf(const Json& line, const eval::LongBenchTask& task, const std::string& path,
                          size_t number) const {
    eval::PromptItem item;
    item.answers = FieldOf<std::vector<std::string>>(line, "answers", path, number);
    if (line.contains("prompt")) {
      item.prompt = FieldOf<std::string>(line, "prompt", path, number);
    } else {
      if (prompts_.is_null())
        throw Error(fmt::format(
            "'{}', line {}: no field \"prompt\". For the data set's own lines (context, input) give --config, "
            "the folder with LongBench's dataset2prompt.json.",
            path, number));
      item.prompt = eval::FillTemplate(
          FieldOf<std::string>(prompts_, std::string(task.name).c_str(), "dataset2prompt.json", 1),
          FieldOf<std::string>(line, "context", path, number), FieldOf<std::string>(line, "input", path, number));
    }
    if (line.contains("all_classes") && line.at("all_classes").is_array())
      item.all_classes = FieldOf<std::vector<std::string>>(line, "all_classes", path, number);
    item.length = line.contains("length") ? FieldOf<int64_t>(line, "length", path, number)
                                          : std::ssize(eval::SplitWords(eval::FromUtf8(item.prompt)));
    item.max_new_tokens = task.max_new_tokens;
    if (!lengths_.is_null())
      item.max_new_tokens =
          static_cast<int>(FieldOf<int64_t>(lengths_, std::string(task.name).c_str(), "dataset2maxlen.json", 1));
    item.chat = !task.without_chat;
    item.one_line = task.name == "samsum";
    return item;
  }

  std::string data_;
  Json prompts_, lengths_;
};

std::vector<eval::PromptItem> Synthetic(const Json& job, const llama_model* model, const eval::ChatFormat& format) {
  const std::vector<std::string> haystack = eval::SplitSentences(job.at("text").get<std::string>());
  const auto count_tokens = [&](const eval::PromptItem& item) {
    return std::ssize(eval::PromptTokens(model, format, item, int64_t{1} << 30));
  };
  std::vector<double> depths = job.at("depths");
  if (depths.empty()) depths.push_back(-1);
  const int64_t samples = job.at("samples");
  std::vector<eval::PromptItem> items;
  for (const Json& task : job.at("tasks")) {
    int64_t index = 0;
    for (const Json& length : job.at("lengths")) {
      for (const double depth : depths) {
        for (int64_t sample = 0; sample < samples; ++sample) {
          items.push_back(eval::MakeSyntheticItem(
              {.task = task, .tokens = length, .index = index, .seed = job.at("seed"), .depth = depth}, haystack,
              count_tokens));
          ++index;
        }
      }
    }
  }
  return items;
}

}  // namespace

std::vector<eval::PromptItem> MakeItems(const Json& job, const llama_model* model, const eval::ChatFormat& format) {
  if (job.at("source") == "synthetic") return Synthetic(job, model, format);
  const LongBenchFiles files(job.at("data"), job.at("config"));
  std::vector<eval::PromptItem> items;
  for (const Json& dataset : job.at("datasets")) {
    for (eval::PromptItem& item : files.Read(dataset, job.at("limit"))) items.push_back(std::move(item));
  }
  return items;
}

}  // namespace kvrazor::apps

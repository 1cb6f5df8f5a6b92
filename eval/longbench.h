// LongBench v1 and LongBench-E (THUDM, arXiv:2308.14508): tasks, metrics and averages, as its own eval.py computes them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvrazor::eval {

enum class LongBenchMetric {
  kQaF1,
  kQaF1Chinese,
  kRougeL,
  kRougeLChinese,
  kClassification,
  kRetrieval,
  kRetrievalChinese,
  kCount,
  kCodeSimilarity,
};

struct LongBenchTask {
  std::string_view name;
  LongBenchMetric metric;
  int max_new_tokens;    ///< of config/dataset2maxlen.json
  bool first_line_only;  ///< only the first line of a prediction counts
  bool without_chat;     ///< asked without the model's chat template, as pred.py does
};

/// All 21, in the order of the paper.
std::span<const LongBenchTask> LongBenchTasks();
/// By name, "_e" at the end allowed. Throws Error with the possible names.
const LongBenchTask& FindLongBenchTask(std::string_view name);

/// Splits Chinese texts into words, all of them at once: one list of words for each text.
using ChineseWords = std::function<std::vector<std::vector<std::string>>(const std::vector<std::string>&)>;

struct LongBenchAnswer {
  std::string task;
  std::string prediction;
  std::vector<std::string> answers;
  std::vector<std::string> all_classes;  ///< of the classification tasks
};
/// One score in [0, 1] a line: the best over its answers. `chinese_words` is called at most once, and only if a task's metric
/// needs words of Chinese text (multifieldqa_zh, dureader, vcsum). Throws Error for an unknown task and for a retrieval task
/// whose answer names no paragraph.
std::vector<double> ScoreLongBench(std::span<const LongBenchAnswer> lines, const ChineseWords& chinese_words);

/// LongBench-E's buckets of the length that the data set gives for each line: 0-4k, 4-8k, 8k+.
inline constexpr std::string_view kLengthBuckets[] = {"0-4k", "4-8k", "8k+"};
int LengthBucket(int64_t length);

/// 100 x the mean, rounded to two decimals as the original does; NaN for none.
double LongBenchAverage(std::span<const double> scores);

/// The prompt in the data set's template: "{context}" and "{input}" are replaced. Throws Error for any other field in braces.
std::string FillTemplate(std::string_view prompt_template, std::string_view context, std::string_view input);

}  // namespace kvrazor::eval

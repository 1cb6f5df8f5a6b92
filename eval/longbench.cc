#include "eval/longbench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "eval/python_text.h"
#include "eval/text_similarity.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Metric = LongBenchMetric;
using Text = std::u32string;
using Words = std::vector<Text>;

constexpr std::array kTasks = {
    LongBenchTask{"narrativeqa", Metric::kQaF1, 128, false, false},
    LongBenchTask{"qasper", Metric::kQaF1, 128, false, false},
    LongBenchTask{"multifieldqa_en", Metric::kQaF1, 64, false, false},
    LongBenchTask{"multifieldqa_zh", Metric::kQaF1Chinese, 64, false, false},
    LongBenchTask{"hotpotqa", Metric::kQaF1, 32, false, false},
    LongBenchTask{"2wikimqa", Metric::kQaF1, 32, false, false},
    LongBenchTask{"musique", Metric::kQaF1, 32, false, false},
    LongBenchTask{"dureader", Metric::kRougeLChinese, 128, false, false},
    LongBenchTask{"gov_report", Metric::kRougeL, 512, false, false},
    LongBenchTask{"qmsum", Metric::kRougeL, 512, false, false},
    LongBenchTask{"multi_news", Metric::kRougeL, 512, false, false},
    LongBenchTask{"vcsum", Metric::kRougeLChinese, 512, false, false},
    LongBenchTask{"trec", Metric::kClassification, 64, true, true},
    LongBenchTask{"triviaqa", Metric::kQaF1, 32, true, true},
    LongBenchTask{"samsum", Metric::kRougeL, 128, true, true},
    LongBenchTask{"lsht", Metric::kClassification, 64, true, true},
    LongBenchTask{"passage_count", Metric::kCount, 32, false, false},
    LongBenchTask{"passage_retrieval_en", Metric::kRetrieval, 32, false, false},
    LongBenchTask{"passage_retrieval_zh", Metric::kRetrievalChinese, 32, false, false},
    LongBenchTask{"lcc", Metric::kCodeSimilarity, 64, false, true},
    LongBenchTask{"repobench-p", Metric::kCodeSimilarity, 64, false, true},
};

constexpr std::u32string_view kChinesePunctuation =
    U"！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞"
    U"〟〰〾〿–—‘’‛“”„‟…‧﹏.";

bool NeedsChineseWords(Metric metric) { return metric == Metric::kQaF1Chinese || metric == Metric::kRougeLChinese; }

// re.sub(r"\b(a|an|the)\b", " ", text)
Text WithoutArticles(const Text& text) {
  Text out;
  for (size_t at = 0; at < text.size();) {
    if (!IsWordCharacter(text[at])) {
      out += text[at++];
      continue;
    }
    size_t end = at;
    while (end < text.size() && IsWordCharacter(text[end])) ++end;
    const Text word = text.substr(at, end - at);
    out += word == U"a" || word == U"an" || word == U"the" ? U" " : word;
    at = end;
  }
  return out;
}

Words EnglishAnswerWords(const Text& text) {
  Text lower = Lower(text);
  std::erase_if(lower, IsAsciiPunctuation);
  return SplitWords(WithoutArticles(lower));
}

Words ChineseAnswerWords(const Words& words) {
  Words kept;
  for (const Text& word : words) {
    Text lower = Lower(word);
    std::erase_if(lower, [](char32_t c) {
      return IsSpace(c) || IsAsciiPunctuation(c) || kChinesePunctuation.find(c) != kChinesePunctuation.npos;
    });
    if (!lower.empty()) kept.push_back(std::move(lower));
  }
  return kept;
}

double F1(const Words& prediction, const Words& answer) {
  std::map<Text, int64_t> left;
  for (const Text& word : answer) ++left[word];
  int64_t same = 0;
  for (const Text& word : prediction) {
    const auto found = left.find(word);
    if (found == left.end() || found->second == 0) continue;
    --found->second;
    ++same;
  }
  if (same == 0) return 0;
  const double precision = static_cast<double>(same) / static_cast<double>(prediction.size());
  const double recall = static_cast<double>(same) / static_cast<double>(answer.size());
  return 2 * precision * recall / (precision + recall);
}

double ShareOfNumbers(const Text& prediction, const Text& wanted) {
  const Words numbers = FindNumbers(prediction);
  if (numbers.empty()) return 0;
  return static_cast<double>(std::count(numbers.begin(), numbers.end(), wanted)) / static_cast<double>(numbers.size());
}

// The number behind the first `word` in the answer that has one.
Text ParagraphNumber(const Text& answer, std::u32string_view word) {
  for (size_t at = answer.find(word); at != Text::npos; at = answer.find(word, at + 1)) {
    const size_t begin = at + word.size();
    if (begin < answer.size() && IsDecimalDigit(answer[begin]))
      return FindNumbers(std::u32string_view(answer).substr(begin)).front();
  }
  throw Error(
      fmt::format("the answer '{}' names no paragraph; '{}' and a number was expected.", ToUtf8(answer), ToUtf8(word)));
}

double CodeSimilarity(const Text& prediction, const Text& answer) {
  Text code;
  for (const Text& line : Split(WithoutLeadingNewlines(prediction), U'\n')) {
    if (line.find(U'`') != line.npos || line.find(U'#') != line.npos || line.find(U"//") != line.npos) continue;
    code = line;
    break;
  }
  return FuzzRatio(code, answer) / 100.0;
}

double Classification(const Text& prediction, const Text& answer, const std::vector<std::string>& all_classes) {
  Words matches;
  for (const std::string& name : all_classes) {
    Text utf32 = FromUtf8(name);
    if (prediction.find(utf32) != Text::npos) matches.push_back(std::move(utf32));
  }
  // The original removes from the list that it walks through, so the match behind a removed one is not looked at; and
  // removes the first equal one.
  for (size_t i = 0; i < matches.size(); ++i) {
    const Text match = matches[i];
    if (match != answer && answer.find(match) != Text::npos)
      matches.erase(std::find(matches.begin(), matches.end(), match));
  }
  const bool found = std::find(matches.begin(), matches.end(), answer) != matches.end();
  return found ? 1.0 / static_cast<double>(matches.size()) : 0;
}

// Words of the texts of all lines whose metric needs them.
class WordTable {
 public:
  void Want(const std::string& text) { words_.try_emplace(text); }
  void Fill(const ChineseWords& split) {
    if (words_.empty()) return;
    std::vector<std::string> texts;
    for (const auto& [text, words] : words_) texts.push_back(text);
    const std::vector<std::vector<std::string>> lists = split(texts);
    if (lists.size() != texts.size())
      throw Error(fmt::format("splitting {} Chinese texts into words gave {} lists.", texts.size(), lists.size()));
    for (size_t i = 0; i < texts.size(); ++i) {
      for (const std::string& word : lists[i]) words_[texts[i]].push_back(FromUtf8(word));
    }
  }
  const Words& Of(const std::string& text) const { return words_.at(text); }

 private:
  std::map<std::string, Words> words_;
};

std::string Counted(const LongBenchTask& task, const std::string& prediction) {
  if (!task.first_line_only) return prediction;
  return ToUtf8(Split(WithoutLeadingNewlines(FromUtf8(prediction)), U'\n').front());
}

double Score(const LongBenchTask& task, const std::string& prediction, const std::string& answer,
             const std::vector<std::string>& all_classes, const WordTable& words) {
  const Text p = FromUtf8(prediction), a = FromUtf8(answer);
  switch (task.metric) {
    case Metric::kQaF1: return F1(EnglishAnswerWords(p), EnglishAnswerWords(a));
    case Metric::kQaF1Chinese:
      return F1(ChineseAnswerWords(words.Of(prediction)), ChineseAnswerWords(words.Of(answer)));
    case Metric::kRougeL: return RougeL(p, a);
    case Metric::kRougeLChinese: return RougeL(Join(words.Of(prediction), U" "), Join(words.Of(answer), U" "));
    case Metric::kClassification: return Classification(p, a, all_classes);
    case Metric::kRetrieval: return ShareOfNumbers(p, ParagraphNumber(a, U"Paragraph "));
    case Metric::kRetrievalChinese: return ShareOfNumbers(p, ParagraphNumber(a, U"段落"));
    case Metric::kCount: return ShareOfNumbers(p, a);
    case Metric::kCodeSimilarity: return CodeSimilarity(p, a);
  }
  throw Error("LongBench: unknown metric.");
}

}  // namespace

std::span<const LongBenchTask> LongBenchTasks() { return kTasks; }

const LongBenchTask& FindLongBenchTask(std::string_view name) {
  std::string_view base = name;
  if (base.ends_with("_e")) base.remove_suffix(2);
  for (const LongBenchTask& task : kTasks) {
    if (task.name == name || task.name == base) return task;
  }
  std::vector<std::string_view> names;
  for (const LongBenchTask& task : kTasks) names.push_back(task.name);
  throw Error(fmt::format("LongBench has no task '{}'; it has {} (LongBench-E: the same names with _e).", name,
                          fmt::join(names, ", ")));
}

std::vector<double> ScoreLongBench(std::span<const LongBenchAnswer> lines, const ChineseWords& chinese_words) {
  WordTable words;
  std::vector<const LongBenchTask*> tasks;
  std::vector<std::string> predictions;
  for (const LongBenchAnswer& line : lines) {
    tasks.push_back(&FindLongBenchTask(line.task));
    predictions.push_back(Counted(*tasks.back(), line.prediction));
    if (!NeedsChineseWords(tasks.back()->metric)) continue;
    words.Want(predictions.back());
    for (const std::string& answer : line.answers) words.Want(answer);
  }
  words.Fill(chinese_words);
  std::vector<double> scores;
  for (size_t i = 0; i < lines.size(); ++i) {
    double best = 0;
    for (const std::string& answer : lines[i].answers)
      best = std::max(best, Score(*tasks[i], predictions[i], answer, lines[i].all_classes, words));
    scores.push_back(best);
  }
  return scores;
}

int LengthBucket(int64_t length) { return length < 4000 ? 0 : length < 8000 ? 1 : 2; }

double LongBenchAverage(std::span<const double> scores) {
  if (scores.empty()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (const double score : scores) sum += score;
  return std::stod(fmt::format("{:.2f}", 100 * sum / static_cast<double>(scores.size())));  // as Python's round(x, 2)
}

std::string FillTemplate(std::string_view prompt_template, std::string_view context, std::string_view input) {
  std::string out;
  for (size_t at = 0; at < prompt_template.size();) {
    const size_t open = prompt_template.find('{', at);
    out += prompt_template.substr(at, open == prompt_template.npos ? open : open - at);
    if (open == prompt_template.npos) break;
    const size_t close = prompt_template.find('}', open);
    const std::string_view field = prompt_template.substr(open + 1, close - open - 1);
    if (close != prompt_template.npos && field == "context") {
      out += context;
    } else if (close != prompt_template.npos && field == "input") {
      out += input;
    } else {
      throw Error(fmt::format("the prompt's template has the field '{{{}'; only {{context}} and {{input}} are known.",
                              field.substr(0, 40)));
    }
    at = close + 1;
  }
  return out;
}

}  // namespace kvrazor::eval

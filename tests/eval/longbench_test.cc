#include "eval/longbench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "eval/chinese_words.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

std::vector<std::vector<std::string>> NoChinese(const std::vector<std::string>&) {
  throw Error("no words of Chinese text are needed here");
}

double ScoreOne(const LongBenchAnswer& line) { return ScoreLongBench(std::span(&line, 1), NoChinese).front(); }

TEST(LongBenchTest, EveryTaskHasItsMetricAndLength) {
  EXPECT_EQ(LongBenchTasks().size(), 21u);
  EXPECT_EQ(FindLongBenchTask("qasper_e").name, "qasper");
  EXPECT_EQ(FindLongBenchTask("repobench-p").max_new_tokens, 64);
  EXPECT_EQ(FindLongBenchTask("vcsum").metric, LongBenchMetric::kRougeLChinese);
  EXPECT_TRUE(FindLongBenchTask("samsum").first_line_only);
  EXPECT_THROW(FindLongBenchTask("qasper_x"), Error);
  EXPECT_THROW(FindLongBenchTask(""), Error);
}

TEST(LongBenchTest, AnswersOfQuestions) {
  EXPECT_DOUBLE_EQ(ScoreOne({"qasper", "The U.S. Army, and a man", {"us army and man"}, {}}),
                   1);                                                             // articles, points, case
  EXPECT_DOUBLE_EQ(ScoreOne({"hotpotqa", "Jean", {"Jean Paul Getty"}, {}}), 0.5);  // 1 of 1 and of 3
  EXPECT_DOUBLE_EQ(ScoreOne({"hotpotqa", "yes yes", {"yes", "no"}, {}}), 2.0 / 3);
  EXPECT_DOUBLE_EQ(ScoreOne({"hotpotqa", "", {"yes"}, {}}), 0);
  EXPECT_DOUBLE_EQ(ScoreOne({"qasper", "x", {}, {}}), 0);
  EXPECT_DOUBLE_EQ(ScoreOne({"triviaqa", "\n\n55\nQuestion: more", {"55"}, {}}), 1);  // the first line alone
  EXPECT_LT(ScoreOne({"hotpotqa", "55\nQuestion: more", {"55"}, {}}), 1);
}

TEST(LongBenchTest, CountsAndParagraphs) {
  EXPECT_DOUBLE_EQ(ScoreOne({"passage_count", "There are 12, no 13.", {"12"}, {}}), 0.5);
  EXPECT_DOUBLE_EQ(ScoreOne({"passage_count", "none", {"12"}, {}}), 0);
  EXPECT_DOUBLE_EQ(ScoreOne({"passage_retrieval_en", "Paragraph 3", {"Paragraph 3"}, {}}), 1);
  EXPECT_DOUBLE_EQ(ScoreOne({"passage_retrieval_en", "Paragraph 30", {"Paragraph 3"}, {}}), 0);
  EXPECT_DOUBLE_EQ(ScoreOne({"passage_retrieval_zh", "段落4，段落5", {"段落4"}, {}}), 0.5);
  EXPECT_THROW(ScoreOne({"passage_retrieval_en", "3", {"3"}, {}}), Error);
}

TEST(LongBenchTest, ClassesAreRemovedFromTheListWhileItIsRead) {
  const std::vector<std::string> classes = {"Date", "Individual", "Individual person"};
  EXPECT_DOUBLE_EQ(ScoreOne({"trec", "Individual", {"Individual"}, classes}), 1);
  EXPECT_DOUBLE_EQ(ScoreOne({"trec", "Date of an Individual", {"Individual"}, classes}), 0.5);
  EXPECT_DOUBLE_EQ(ScoreOne({"trec", "Individual person", {"Individual person"}, classes}), 1);
  EXPECT_DOUBLE_EQ(ScoreOne({"trec", "Date", {"Individual"}, classes}), 0);
  // a and ab are both parts of the answer; removing a, the original steps over ab and keeps it: 1 of 2.
  EXPECT_DOUBLE_EQ(ScoreOne({"trec", "abc", {"abc"}, {"a", "ab", "abc"}}), 0.5);
}

TEST(LongBenchTest, CodeIsTheFirstLineWithoutRemarks) {
  EXPECT_DOUBLE_EQ(ScoreOne({"lcc", "\n# remark\nx = 1\ny = 2", {"x = 1"}, {}}), 1);
  EXPECT_DOUBLE_EQ(ScoreOne({"lcc", "```python", {"x = 1"}, {}}), 0);
}

TEST(LongBenchTest, AveragesAndBucketsAsTheOriginal) {
  EXPECT_DOUBLE_EQ(LongBenchAverage(std::vector<double>{1, 0, 0}), 33.33);
  EXPECT_TRUE(std::isnan(LongBenchAverage({})));
  EXPECT_EQ(LengthBucket(3999), 0);
  EXPECT_EQ(LengthBucket(4000), 1);
  EXPECT_EQ(LengthBucket(7999), 1);
  EXPECT_EQ(LengthBucket(8000), 2);
}

TEST(LongBenchTest, Templates) {
  EXPECT_EQ(FillTemplate("A {context} B {input}", "x{input}", "y"),
            "A x{input} B y");  // what was filled in is left alone
  EXPECT_EQ(FillTemplate("plain", "x", "y"), "plain");
  EXPECT_THROW(FillTemplate("{other}", "x", "y"), Error);
  EXPECT_THROW(FillTemplate("{context", "x", "y"), Error);
}

// Expected: what LongBench's definitions give for these two sentences with the packages jieba 0.42.1 and rouge 1.0.1.
TEST(LongBenchTest, ChineseAsTheOriginal) {
  const std::string prediction = "会议讨论了新产品的上市时间，并决定在明年三月发布。";
  const std::string answer = "会议决定明年三月发布新产品，预算为200万元。";
  const std::vector<LongBenchAnswer> lines = {{"multifieldqa_zh", prediction, {answer}, {}},
                                              {"vcsum", prediction, {answer}, {}}};
  try {
    JiebaWords({"词"});
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  const std::vector<double> scores = ScoreLongBench(lines, JiebaWords);
  EXPECT_NEAR(scores[0], 0.56, 1e-9);
  EXPECT_NEAR(scores[1], 0.4137930985017836, 1e-9);
}

TEST(LongBenchTest, ChineseWordsOnceForAllLines) {
  int calls = 0;
  const auto characters = [&calls](const std::vector<std::string>& texts) {
    ++calls;
    std::vector<std::vector<std::string>> lists;
    for (const std::string& text : texts) {
      lists.emplace_back();
      for (size_t i = 0; i + 2 < text.size(); i += 3) lists.back().push_back(text.substr(i, 3));
    }
    return lists;
  };
  const std::vector<LongBenchAnswer> lines = {{"multifieldqa_zh", "天地。", {"天"}, {}},
                                              {"multifieldqa_zh", "人", {"天"}, {}}};
  EXPECT_EQ(ScoreLongBench(lines, characters), (std::vector<double>{2.0 / 3, 0}));  // 1 of 2 (no full stop) and of 1
  EXPECT_EQ(calls, 1);
}

TEST(ChineseWordsTest, SaysWhatIsMissing) {
  setenv("KVRAZOR_PYTHON", "/nowhere/python", 1);
  try {
    JiebaWords({"词"});
    FAIL() << "there is no such interpreter";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("python3-jieba"), std::string::npos) << e.what();
  }
  unsetenv("KVRAZOR_PYTHON");
  EXPECT_TRUE(JiebaWords({}).empty());
}

// Scores that LongBench's own metrics.py and eval.py gave, rounded to 6 digits.
TEST(LongBenchTest, GoldenScores) {
  const char* folder = std::getenv("KVRAZOR_TEST_DATA");
  const std::string path = std::string(folder ? folder : KVRAZOR_TEST_DATA) + "/longbench_golden_scores.jsonl";
  std::ifstream file(path);
  if (!file) GTEST_SKIP() << "no " << path << "; KVRAZOR_TEST_DATA names the folder with it";
  std::vector<LongBenchAnswer> lines;
  std::vector<double> wanted;
  for (std::string text; std::getline(file, text);) {
    const nlohmann::json line = nlohmann::json::parse(text);
    lines.push_back({line.at("task"), line.at("prediction"), line.at("answers"),
                     line.value("all_classes", std::vector<std::string>())});
    wanted.push_back(line.at("score"));
  }
  ASSERT_GT(lines.size(), 200u);
  const std::vector<double> scores = ScoreLongBench(lines, NoChinese);
  for (size_t i = 0; i < lines.size(); ++i)
    EXPECT_NEAR(scores[i], wanted[i], 1e-6) << lines[i].task << " line " << i + 1;
}

}  // namespace
}  // namespace kvrazor::eval

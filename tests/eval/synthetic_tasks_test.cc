#include "eval/synthetic_tasks.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

// A token a word: enough to see that lengths are kept to.
int64_t CountWords(const PromptItem& item) {
  std::istringstream words(item.prompt + " " + item.answer_start);
  int64_t count = 0;
  for (std::string word; words >> word;) ++count;
  return count;
}

PromptItem Make(const std::string& task, int64_t tokens, int64_t index = 0, double depth = -1) {
  return MakeSyntheticItem({.task = task, .tokens = tokens, .index = index, .seed = 5, .depth = depth}, {}, CountWords);
}

int64_t Occurrences(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

TEST(SyntheticTasksTest, EveryItemIsAsLongAsFitsAndHoldsItsAnswers) {
  for (const std::string_view task : SyntheticTasks()) {
    for (const int64_t tokens : {1024, 4000}) {
      const PromptItem item = Make(std::string(task), tokens);
      SCOPED_TRACE(std::string(task) + " " + std::to_string(tokens));
      EXPECT_LE(CountWords(item) + item.max_new_tokens, tokens);
      EXPECT_GE(CountWords(item) + item.max_new_tokens,
                tokens - 20);  // one more sentence, or a few words, would not fit
      ASSERT_FALSE(item.answers.empty());
      for (const std::string& answer : item.answers) EXPECT_NE(item.prompt.find(answer), std::string::npos) << answer;
      EXPECT_EQ(item.task, task);
      EXPECT_EQ(item.length, tokens);
    }
  }
}

TEST(SyntheticTasksTest, TheSameChoiceGivesTheSameItem) {
  EXPECT_EQ(Make("niah_multikey", 500).prompt, Make("niah_multikey", 500).prompt);
  EXPECT_NE(Make("niah_multikey", 500, 1).answers, Make("niah_multikey", 500).answers);
}

TEST(SyntheticTasksTest, NeedlesStandWhereTheyShould) {
  for (const double depth : {0.0, 0.5, 1.0}) {
    const PromptItem item = Make("needle", 2000, 0, depth);
    const double at =
        static_cast<double>(item.prompt.find("One of the special")) / static_cast<double>(item.prompt.size());
    EXPECT_NEAR(at, depth, 0.03);
  }
}

TEST(SyntheticTasksTest, KeysAndValuesAsInRuler) {
  const auto needles = [](const PromptItem& item) {
    return Occurrences(item.prompt, "One of the special magic numbers");
  };
  EXPECT_EQ(needles(Make("niah_single", 500)), 1);
  EXPECT_EQ(needles(Make("niah_multikey", 500)), 4);
  EXPECT_EQ(Make("niah_multikey", 500).answers.size(), 1u);
  EXPECT_EQ(needles(Make("niah_multivalue", 500)), 4);
  EXPECT_EQ(Make("niah_multivalue", 500).answers.size(), 4u);
  EXPECT_EQ(Make("niah_multiquery", 500).answers.size(), 4u);
}

TEST(SyntheticTasksTest, VariablesAreAChain) {
  const PromptItem item = Make("vt", 500);
  ASSERT_EQ(item.answers.size(), 5u);
  for (size_t i = 1; i < item.answers.size(); ++i)
    EXPECT_EQ(Occurrences(item.prompt, "VAR " + item.answers[i] + " = VAR " + item.answers[i - 1] + "."), 1);
}

TEST(SyntheticTasksTest, CommonWordsAreTheMostCommon) {
  const PromptItem item = Make("cwe", 4096);
  // The list to be judged is the last one; an example with other words stands before it.
  std::istringstream words(item.prompt.substr(item.prompt.rfind("Below is")));
  std::map<std::string, int> counts;
  for (std::string word; words >> word;) ++counts[word];
  for (const std::string& answer : item.answers) EXPECT_EQ(counts[answer], 30) << answer;
  EXPECT_EQ(std::set<std::string>(item.answers.begin(), item.answers.end()).size(), 10u);
  for (const auto& [word, count] : counts) {
    const bool listed = std::isalpha(static_cast<unsigned char>(word[0])) && word.size() > 7;
    if (listed && std::find(item.answers.begin(), item.answers.end(), word) == item.answers.end()) {
      EXPECT_LE(count, 3) << word;
    }
  }
}

TEST(SyntheticTasksTest, TextOfTheUserIsUsedInItsOrder) {
  const std::vector<std::string> haystack = SplitSentences("Alpha is first. Beta is 2.5 long! Gamma?\nDelta.");
  EXPECT_EQ(haystack, (std::vector<std::string>{"Alpha is first.", "Beta is 2.5 long!", "Gamma?", "Delta."}));
  const PromptItem item = MakeSyntheticItem({.task = "needle", .tokens = 200, .depth = 1}, haystack, CountWords);
  EXPECT_NE(item.prompt.find("Alpha is first. Beta is 2.5 long! Gamma? Delta. Alpha"), std::string::npos);
  EXPECT_EQ(SplitSentences(" \n\n"), std::vector<std::string>{});
}

TEST(SyntheticTasksTest, RefusesWhatDoesNotFitAndWhatItDoesNotKnow) {
  EXPECT_THROW(Make("needle", 40), Error);
  EXPECT_THROW(Make("nonsense", 400), Error);
}

TEST(MatchAllTest, ShareOfTheReferencesLetterCaseAside) {
  EXPECT_DOUBLE_EQ(MatchAll("it is ABCDE and 12", {"abcde", "12", "13"}), 2.0 / 3);
  EXPECT_DOUBLE_EQ(MatchAll("", {"a"}), 0);
  EXPECT_DOUBLE_EQ(MatchAll("x", {}), 0);
}

}  // namespace
}  // namespace kvrazor::eval

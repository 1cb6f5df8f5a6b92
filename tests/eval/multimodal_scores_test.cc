#include "eval/multimodal_scores.h"

#include <gtest/gtest.h>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Texts = std::vector<std::string>;

TEST(OcrBenchTest, AnAnswerIsPartOfThePrediction) {
  EXPECT_TRUE(OcrBenchHit("IIIT5K", "The word is CENTRE.", Texts{"centre"}));
  EXPECT_TRUE(OcrBenchHit("docVQA", "12\nMay", Texts{"x", " 12 may\n"}));
  EXPECT_FALSE(OcrBenchHit("docVQA", "12 June", Texts{"12 may"}));
  EXPECT_FALSE(OcrBenchHit("docVQA", "", Texts{""}));  // not answered
  EXPECT_FALSE(OcrBenchHit("docVQA", "x", Texts{}));
}

TEST(OcrBenchTest, FormulasIgnoreSpacesAndKeepCase) {
  EXPECT_TRUE(OcrBenchHit("HME100k", "= \\frac { a } { B }", Texts{"\\frac{a}{B}"}));
  EXPECT_FALSE(OcrBenchHit("HME100k", "\\frac{A}{B}", Texts{"\\frac{a}{B}"}));
  EXPECT_FALSE(OcrBenchHit("docVQA", "a b", Texts{"ab"}));
}

TEST(OcrBenchTest, TenTypesInFiveGroups) {
  EXPECT_EQ(OcrBenchGroup("Digit String Recognition"), "Text Recognition");
  EXPECT_EQ(OcrBenchGroup("Doc-oriented VQA"), "Doc-oriented VQA");
  EXPECT_THROW(OcrBenchGroup("Digit"), Error);
}

TEST(ChoiceTest, WordsOfTheAnswerAndOfNoOtherChoice) {
  const Texts choices = {"a dog barks", "a cat", "two dogs"};
  EXPECT_TRUE(ChoiceHit("It is (A): A dog barks!", "a dog barks", choices));
  EXPECT_FALSE(ChoiceHit("a dog", "a dog barks", choices));
  EXPECT_FALSE(ChoiceHit("a dog barks, or a cat", "a dog barks", choices));  // cat belongs to another choice
  EXPECT_TRUE(ChoiceHit("a cat", "a cat", choices));
  EXPECT_FALSE(ChoiceHit("", "a cat", choices));
  EXPECT_FALSE(ChoiceHit("?!", "a cat", choices));
}

}  // namespace
}  // namespace kvrazor::eval

#include "eval/text_similarity.h"

#include <gtest/gtest.h>

#include <string>

namespace kvrazor::eval {
namespace {

// The package adds 1e-8 to the sum of precision and recall.
double F(double precision, double recall) { return 2 * (precision * recall / (precision + recall + 1e-8)); }

TEST(RougeLTest, ByHand) {
  // 4 common words of 5 and 6, one sentence each: "the cat on mat".
  EXPECT_DOUBLE_EQ(RougeL(U"the cat on a mat", U"the cat sat on blue mat"), F(4.0 / 5, 4.0 / 6));
  EXPECT_DOUBLE_EQ(RougeL(U"a b", U"a b"), F(1, 1));
  EXPECT_EQ(RougeL(U"a b", U"c d"), 0);
  EXPECT_DOUBLE_EQ(RougeL(U"b a", U"a b"), F(0.5, 0.5));  // order counts
}

TEST(RougeLTest, WordsCountOnceAndSentencesAreJoined) {
  EXPECT_DOUBLE_EQ(RougeL(U"a a a b", U"a b"), F(1, 1));  // sets of words
  // Reference sentence "w1 w2 w3 w4 w5"; the two of the prediction give "w1 w2" and "w1 w3 w5": 4 of 5, of 8 different words.
  EXPECT_DOUBLE_EQ(RougeL(U"w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", U"w1 w2 w3 w4 w5"), F(4.0 / 8, 4.0 / 5));
}

TEST(RougeLTest, WithoutSentences) {
  EXPECT_EQ(RougeL(U"", U"a"), 0);
  EXPECT_EQ(RougeL(U"...", U"a"), 0);
  EXPECT_EQ(RougeL(U"a", U""), 0);
  EXPECT_DOUBLE_EQ(RougeL(U" ", U" "), F(1, 1));  // one empty word on both sides, as in the package
}

TEST(RougeLTest, LongSentencesFailAsInThePackage) {
  const auto words = [](int count) {
    std::u32string text;
    for (int i = 0; i < count; ++i) text += U"w" + std::u32string(static_cast<size_t>(i % 7), U'x') + U" ";
    return text;
  };
  EXPECT_GT(RougeL(words(900), words(900)), 0.99);
  EXPECT_EQ(RougeL(words(1000), words(1000)), 0);  // Python's recursion limit
}

TEST(FuzzRatioTest, ByHand) {
  EXPECT_EQ(FuzzRatio(U"abcd", U"abcd"), 100);
  EXPECT_EQ(FuzzRatio(U"", U""), 100);
  EXPECT_EQ(FuzzRatio(U"", U"a"), 0);
  EXPECT_EQ(FuzzRatio(U"abcd", U"bcde"), 75);  // 2 * 3 / 8
  EXPECT_EQ(FuzzRatio(U"ab", U"ba"), 50);      // a longest common subsequence of 1
  EXPECT_EQ(FuzzRatio(U"abc", U"xyz"), 0);
  EXPECT_EQ(FuzzRatio(U"éa", U"éb"), 50);  // characters, not bytes
}

TEST(FuzzRatioTest, RoundsHalvesToEven) {
  // 2 * 1 / 16 = 12.5 %, 2 * 3 / 16 = 37.5 %
  EXPECT_EQ(FuzzRatio(U"a", U"a" + std::u32string(14, U'b')), 12);
  EXPECT_EQ(FuzzRatio(U"aaa", U"aaa" + std::u32string(10, U'b')), 38);
}

}  // namespace
}  // namespace kvrazor::eval

#include "eval/python_text.h"

#include <gtest/gtest.h>

namespace kvrazor::eval {
namespace {

using Words = std::vector<std::u32string>;

TEST(PythonTextTest, Utf8ThereAndBack) {
  const std::string text = "a\u00e9\u4e2d\U0001F600\n";
  EXPECT_EQ(FromUtf8(text), U"a\u00e9\u4e2d\U0001F600\n");
  EXPECT_EQ(ToUtf8(FromUtf8(text)), text);
  EXPECT_EQ(FromUtf8(""), U"");
}

TEST(PythonTextTest, WhatIsNotUtf8BecomesTheReplacementCharacter) {
  EXPECT_EQ(FromUtf8("a\x80z"), U"a\ufffdz");                            // a continuation byte alone
  EXPECT_EQ(FromUtf8("\xc0\xaf"), U"\ufffd\ufffd");                      // an overlong '/'
  EXPECT_EQ(FromUtf8("\xe4\xb8"), U"\ufffd\ufffd");                      // cut off at the end
  EXPECT_EQ(FromUtf8("\xed\xa0\x80"), U"\ufffd\ufffd\ufffd");            // a surrogate
  EXPECT_EQ(FromUtf8("\xf4\x90\x80\x80"), U"\ufffd\ufffd\ufffd\ufffd");  // above U+10FFFF
}

TEST(PythonTextTest, LowerCaseAsPythonsStr) { EXPECT_EQ(Lower(U"The ÉCOLE ΑΒΓ Ж İ ß"), U"the école αβγ ж i\u0307 ß"); }

TEST(PythonTextTest, SplitsAtEveryUnicodeSpace) {
  EXPECT_EQ(SplitWords(U"  a\u00a0b\u3000c\td\x1c"
                       U"e\u2003f\n"),
            (Words{U"a", U"b", U"c", U"d", U"e", U"f"}));
  EXPECT_EQ(SplitWords(U"\u200b"), (Words{U"\u200b"}));  // zero width space: no white space for Python
  EXPECT_EQ(SplitWords(U" \n "), Words{});
  EXPECT_EQ(Split(U".a..b", U'.'), (Words{U"", U"a", U"", U"b"}));
  EXPECT_EQ(Split(U"", U'.'), (Words{U""}));
  EXPECT_EQ(Join({U"a", U"b"}, U", "), U"a, b");
  EXPECT_EQ(WithoutLeadingNewlines(U"\n\n a\n"), U" a\n");
  EXPECT_EQ(WithoutLeadingNewlines(U"\n\n"), U"");
}

TEST(PythonTextTest, NumbersAreDecimalDigitsOfAnyScript) {
  EXPECT_EQ(FindNumbers(U"Paragraph 12, 007 or \u0663\u0664; x² and ½"), (Words{U"12", U"007", U"\u0663\u0664"}));
  EXPECT_EQ(FindNumbers(U"none"), Words{});
  EXPECT_TRUE(IsDecimalDigit(0xff19));
  EXPECT_FALSE(IsDecimalDigit(0xff1a));
  EXPECT_FALSE(IsDecimalDigit(0x2f));
  EXPECT_TRUE(IsDecimalDigit(0x1d7ff));
  EXPECT_FALSE(IsDecimalDigit(0xb2));
}

TEST(PythonTextTest, WordCharactersAndPunctuation) {
  for (const char32_t c : U"aZ9_é中½") {
    if (c) {
      EXPECT_TRUE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
    }
  }
  for (const char32_t c : U" -'\u2019\u0301") {
    if (c) {
      EXPECT_FALSE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
    }
  }
  int count = 0;
  for (char32_t c = 0; c < 0x3000; ++c) count += IsAsciiPunctuation(c);
  EXPECT_EQ(count, 32);  // len(string.punctuation)
}

}  // namespace
}  // namespace kvrazor::eval

#include "apps/text_table.h"

#include <gtest/gtest.h>

namespace kvrazor::apps {
namespace {

TEST(TextTableTest, AlignsByTheWidestCell) {
  TextTable table({"<name", "value"});
  table.Add({"a", "1"});
  table.Add({"\xC3\xA9t\xC3\xA9", "12.5"});  // two-byte characters take one column
  EXPECT_EQ(table.Text(), "name  value\n----  -----\na         1\n\xC3\xA9t\xC3\xA9    12.5\n");
}

TEST(TextTableTest, WrapsAtWordsAndHidesControlCharacters) {
  EXPECT_EQ(Wrapped("one two three", 7, "  "), "  one two\n  three\n");
  EXPECT_EQ(Wrapped("a\x1b[31mb\nc", 80, ""), "a [31mb c\n");
  EXPECT_EQ(Wrapped("unbreakable", 4, ""), "unbreakable\n");
  EXPECT_EQ(Wrapped("", 80, "  "), "");
}

TEST(TextTableTest, PrintableKeepsTextAndReplacesTheRest) {
  EXPECT_EQ(Printable("a\tb\n\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"), "a\tb\n\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80");
  EXPECT_EQ(Printable("\x1b[2J\x7f"), "?[2J?");
  EXPECT_EQ(Printable("\xD4x"), "?x");               // no second byte
  EXPECT_EQ(Printable("\xC0\x80"), "??");            // a long form of 0
  EXPECT_EQ(Printable("\xED\xA0\x80"), "???");       // a surrogate
  EXPECT_EQ(Printable("\xF4\x90\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(Printable("\xC2\x9B"), "??");            // a control character of the terminal
  EXPECT_EQ(Printable("ends \xE2\x82"), "ends ??");
}

TEST(TextTableTest, Bytes) {
  EXPECT_EQ(Bytes(0), "0 B");
  EXPECT_EQ(Bytes(999), "999 B");
  EXPECT_EQ(Bytes(1024), "1.00 KiB");
  EXPECT_EQ(Bytes(188743680), "180 MiB");
  EXPECT_EQ(Bytes(24.0 * (1 << 30)), "24.0 GiB");
}

}  // namespace
}  // namespace kvrazor::apps

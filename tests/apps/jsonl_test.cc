#include "apps/jsonl.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

class JsonLinesTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / "kvrazor-jsonl-XXXXXX").string();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& text) {
    std::ofstream(folder_ + "/file.jsonl", std::ios::binary) << text;
    return folder_ + "/file.jsonl";
  }
  static std::string Read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  template <typename F>
  static std::string Complaint(F f) {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  std::string folder_;
};

TEST_F(JsonLinesTest, ReadsLinesAndNamesTheBadOne) {
  EXPECT_EQ(ReadJsonLines(Write("{\"a\":1}\n\n  \n{\"a\":2}")).size(), 2u);
  EXPECT_NE(Complaint([&] { ReadJsonLines(Write("{}\n\n{\"a\":")); }).find("line 3"), std::string::npos);
  EXPECT_NE(Complaint([&] { ReadJsonLines(Write("[1]\n")); }).find("line 1"), std::string::npos);
  EXPECT_NE(Complaint([&] { ReadJsonLines(Write("{\"a\":\"\xff\"}\n")); }).find("line 1"), std::string::npos);
  EXPECT_THROW(ReadJsonLines(Write("")), Error);
  EXPECT_THROW(ReadJsonLines(Write("\n \n")), Error);
  EXPECT_THROW(ReadJsonLines(folder_ + "/none"), Error);
}

TEST_F(JsonLinesTest, FieldsAreThereAndOfTheirType) {
  const Json line = {{"text", "x"}, {"list", {"a", "b"}}, {"number", 3}};
  EXPECT_EQ(FieldOf<std::string>(line, "text", "f", 7), "x");
  EXPECT_EQ(FieldOf<std::vector<std::string>>(line, "list", "f", 7).size(), 2u);
  EXPECT_EQ(FieldOf<int64_t>(line, "number", "f", 7), 3);
  const std::string missing = Complaint([&] { FieldOf<std::string>(line, "pred", "f", 7); });
  EXPECT_NE(missing.find("line 7"), std::string::npos);
  EXPECT_NE(missing.find("\"pred\""), std::string::npos);
  EXPECT_NE(Complaint([&] { FieldOf<std::string>(line, "number", "f", 7); }).find("number"), std::string::npos);
  EXPECT_NE(Complaint([&] { FieldOf<std::vector<std::string>>(line, "text", "f", 7); }).find("string"),
            std::string::npos);
}

TEST_F(JsonLinesTest, AJournalGoesOnAfterATornLine) {
  const std::string path = Write("{\"i\":0}\n{\"i\":1}\n{\"i\":2,\"te");
  {
    LineJournal journal(path);
    ASSERT_EQ(journal.lines().size(), 2u);
    EXPECT_EQ(Read(path), "{\"i\":0}\n{\"i\":1}\n");
    journal.Append({{"i", 2}});
    EXPECT_EQ(journal.lines().size(), 3u);
  }
  EXPECT_EQ(Read(path), "{\"i\":0}\n{\"i\":1}\n{\"i\":2}\n");
  EXPECT_EQ(LineJournal(path).lines().size(), 3u);
}

TEST_F(JsonLinesTest, AJournalOfBadLinesIsLeftAlone) {
  const std::string path = Write("{\"i\":0}\nnonsense\n");
  EXPECT_THROW(LineJournal{path}, Error);
  EXPECT_EQ(Read(path), "{\"i\":0}\nnonsense\n");
  EXPECT_THROW(LineJournal{folder_ + "/no/such/folder.jsonl"}, Error);
}

TEST_F(JsonLinesTest, ANewJournalIsEmpty) {
  LineJournal journal(folder_ + "/new.jsonl");
  EXPECT_TRUE(journal.lines().empty());
  journal.Append({{"text", "a\nb\xff"}});  // no line break and no broken UTF-8 gets through
  EXPECT_EQ(ReadJsonLines(folder_ + "/new.jsonl").size(), 1u);
}

TEST_F(JsonLinesTest, AFolderKeepsToItsSettings) {
  const Json settings = {{"window", 2048}, {"text", "abc"}};
  EXPECT_FALSE(OpenRunFolder(folder_ + "/run", settings));
  EXPECT_TRUE(OpenRunFolder(folder_ + "/run", settings));
  const std::string complaint = Complaint([&] {
    OpenRunFolder(folder_ + "/run", {{"window", 1024}, {"text", "abc"}});
  });
  EXPECT_NE(complaint.find("window"), std::string::npos);
  EXPECT_EQ(complaint.find("text:"), std::string::npos);
  EXPECT_TRUE(OpenRunFolder(folder_ + "/run", settings));  // the refusal changed nothing
}

TEST_F(JsonLinesTest, FingerprintsDiffer) {
  EXPECT_EQ(Fingerprint("").size(), 16u);
  EXPECT_EQ(Fingerprint("a"), Fingerprint("a"));
  EXPECT_NE(Fingerprint("a"), Fingerprint("b"));
}

}  // namespace
}  // namespace kvrazor::apps

#include "apps/atomic_files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "apps/read_text.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

namespace fs = std::filesystem;

class AtomicFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = (fs::temp_directory_path() / "kvrazor-files-XXXXXX").string();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  int64_t NumFiles() const { return std::distance(fs::directory_iterator(folder_), fs::directory_iterator()); }
  std::string folder_;
};

TEST_F(AtomicFilesTest, WritesAllOfThem) {
  WriteAtomically({{Path("a"), "one"}, {Path("b"), std::string(1 << 20, 'x')}});
  EXPECT_EQ(ReadTextFile(Path("a")), "one");
  EXPECT_EQ(ReadTextFile(Path("b")).size(), size_t{1} << 20);
  EXPECT_EQ(NumFiles(), 2);
  WriteAtomically({{Path("a"), "two"}});
  EXPECT_EQ(ReadTextFile(Path("a")), "two");
}

TEST_F(AtomicFilesTest, OneThatFailsLeavesTheOthersAsTheyWere) {
  WriteAtomically({{Path("a"), "old"}});
  EXPECT_THROW(WriteAtomically({{Path("a"), "new"}, {Path("absent/b"), "new"}}), Error);
  EXPECT_EQ(ReadTextFile(Path("a")), "old");
  EXPECT_EQ(NumFiles(), 1);
}

// A limit on the size of files makes write() fail half-way, as a full disk does.
TEST_F(AtomicFilesTest, AFullDiskLeavesWhatWasThere) {
  WriteAtomically({{Path("a"), "old"}});
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {.rlim_cur = 4096, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    WriteAtomically({{Path("a"), std::string(100000, 'x')}});
  } catch (const Error& e) {
    message = e.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find("Nothing was changed"), std::string::npos) << message;
  EXPECT_EQ(ReadTextFile(Path("a")), "old");
  EXPECT_EQ(NumFiles(), 1);
}

TEST_F(AtomicFilesTest, PrepareFolderMakesItAndLeavesItEmpty) {
  PrepareFolder(Path("x/y"));
  EXPECT_TRUE(fs::is_empty(Path("x/y")));
  WriteAtomically({{Path("file"), "text"}});
  EXPECT_THROW(PrepareFolder(Path("file")), Error);
  EXPECT_THROW(PrepareFolder("/proc/kvrazor"), Error);
}

TEST_F(AtomicFilesTest, TextsThatCannotBeRead) {
  EXPECT_THROW(ReadTextFile(Path("absent")), Error);
  EXPECT_THROW(ReadTextFile(folder_), Error);
  WriteAtomically({{Path("empty"), ""}});
  EXPECT_THROW(ReadTextFile(Path("empty")), Error);
}

}  // namespace
}  // namespace kvrazor::apps

#include "eval/accuracy.h"

#include <dirent.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

TEST(SamplePositionsTest, EvenlySpacedAndBounded) {
  const std::vector<int64_t> positions = SamplePositions(8192, 256, 1024);
  EXPECT_EQ(positions.front(), 256);
  EXPECT_EQ(positions[1] - positions[0], 8);  // (8191 - 256) / 1024 rounded up
  EXPECT_LE(positions.size(), 1024u);
  EXPECT_LT(positions.back(), 8191);
  EXPECT_EQ(SamplePositions(10, 4, 100), (std::vector<int64_t>{4, 5, 6, 7, 8}));  // 9 has no next token
  EXPECT_EQ(SamplePositions(10, 8, 1), (std::vector<int64_t>{8}));
  for (const int64_t max : {1, 2, 3, 7, 100}) EXPECT_LE(std::ssize(SamplePositions(1000, 256, max)), max) << max;
}

TEST(SamplePositionsTest, RefusesWhatHasNoPosition) {
  EXPECT_THROW(SamplePositions(10, 9, 5), Error);
  EXPECT_THROW(SamplePositions(0, 0, 5), Error);
  EXPECT_THROW(SamplePositions(10, 4, 0), Error);
  EXPECT_THROW(SamplePositions(10, -1, 5), Error);
}

int64_t NumEntries(const std::string& folder) {
  int64_t count = 0;
  DIR* dir = opendir(folder.c_str());
  while (readdir(dir)) ++count;
  closedir(dir);
  return count;
}

TEST(ReferenceFileTest, KeepsRowsAndLeavesNoName) {
  std::string folder = (std::filesystem::temp_directory_path() / "kvrazor-reference-XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const int64_t before = NumEntries(folder);
  {
    ReferenceFile file = ReferenceFile::Create(folder, 1 << 20);
    EXPECT_EQ(NumEntries(folder), before);  // whatever ends the program leaves nothing behind
    const std::vector<float> a = {1, 2, 3}, b = {-4, -5, -6};
    file.Write(1, b);
    file.Write(0, a);
    std::vector<float> read(3, NAN);
    ReferenceFile::Borrow(file.fd()).Read(0, read);
    EXPECT_EQ(read, a);
    file.Read(1, read);
    EXPECT_EQ(read, b);
    EXPECT_THROW(file.Read(2, read), Error);
  }
  EXPECT_EQ(rmdir(folder.c_str()), 0);
}

TEST(ReferenceFileTest, SaysWhenTheDiskCannotHoldIt) {
  try {
    ReferenceFile::Create("/tmp", int64_t{1} << 60);
    FAIL() << "2^60 bytes cannot fit";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("--positions"), std::string::npos) << e.what();
  }
  EXPECT_THROW(ReferenceFile::Create("/nowhere/at/all", 1), Error);
}

}  // namespace
}  // namespace kvrazor::eval

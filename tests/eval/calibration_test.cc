#include "eval/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kvrazor/error.h"
#include "tests/integrations/ggml/tiny_model.h"

namespace kvrazor::eval {
namespace {

using ::testing::HasSubstr;

class CalibrationTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string folder = std::filesystem::temp_directory_path() / "kvrazor-calibration-XXXXXX";
    ASSERT_TRUE(mkdtemp(folder.data()));
    folder_ = folder;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  static Calibration Example() {
    return {.model = "a \"model\".gguf",
            .fingerprint = "0123456789abcdef",
            .tokens = 512,
            .layers = {{0, {.shape = {1, 4}, .order = {2, 0, 3, 1}}}, {3, {.shape = {2, 2}, .order = {0, 1, 2, 3}}}}};
  }
  std::string ErrorOf(std::string content, const std::string& fingerprint = "0123456789abcdef") const {
    try {
      ReadCalibration(Write("file.json", content), fingerprint);
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("file.json"));
      EXPECT_THAT(e.what(), HasSubstr("kvrazor calibrate MODEL TEXT -o FILE"));
      return e.what();
    }
    return "";
  }
  static std::string Replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }

  std::filesystem::path folder_;
};

TEST_F(CalibrationTest, ComesBackAsItWasWritten) {
  const Calibration want = Example();
  const Calibration got = ReadCalibration(Write("file.json", ToJson(want)), want.fingerprint);
  EXPECT_EQ(got.model, want.model);
  EXPECT_EQ(got.tokens, want.tokens);
  ASSERT_EQ(got.layers.size(), 2u);
  EXPECT_EQ(got.layers.at(3).shape, want.layers.at(3).shape);
  EXPECT_EQ(got.layers.at(0).order, want.layers.at(0).order);
}

TEST_F(CalibrationTest, WrongFilesAreNamedWithWhatIsWrong) {
  const std::string good = ToJson(Example());
  EXPECT_EQ(ErrorOf(good), "");
  EXPECT_THAT(ErrorOf(good, "ffff456789abcdef"), HasSubstr("another model"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("damaged"));
  EXPECT_THAT(ErrorOf(good.substr(0, good.size() / 2)), HasSubstr("damaged"));
  EXPECT_THAT(ErrorOf("[1, 2]"), HasSubstr("no calibration file"));
  EXPECT_THAT(ErrorOf("{\"name\": \"oscar\"}"), HasSubstr("no calibration file"));
  EXPECT_THAT(ErrorOf(Replaced(good, "\"version\": 1", "\"version\": 2")), HasSubstr("version 2"));
  EXPECT_THAT(ErrorOf(Replaced(good, "\"tokens\"", "\"token\"")), HasSubstr("damaged"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "[2,0,3,3]")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "[2,0,3]")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "[2,0,3,4]")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "\"2031\"")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "[2.5,0,3,1]")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "[2,0,3,1]", "[2,0,3,4294967297]")), HasSubstr("order of layer 0"));
  EXPECT_THAT(ErrorOf(Replaced(good, "\"layer\":3", "\"layer\":1e300")), HasSubstr("\"layer\" is no whole number"));
  EXPECT_THAT(ErrorOf(Replaced(good, "\"layer\":3", "\"layer\":4294967299")),
              HasSubstr("\"layer\" is no whole number"));
  EXPECT_THAT(ErrorOf(Replaced(Replaced(good, "\"num_kv_heads\":2", "\"num_kv_heads\":-2"), "\"head_dim\":2",
                               "\"head_dim\":-2")),
              HasSubstr("\"num_kv_heads\" is no whole number"));
  EXPECT_THAT(ErrorOf(Replaced(good, "\"layer\":3", "\"layer\":0")), HasSubstr("twice"));
  EXPECT_THROW(ReadCalibration(folder_ / "none.json", ""), Error);
}

TEST_F(CalibrationTest, FingerprintIsOfTheFilesContent) {
  const std::string model = folder_ / "model.gguf", other = folder_ / "other.gguf", changed = folder_ / "changed.gguf";
  ggml_test::WriteTinyModel("llama", model);
  ggml_test::WriteTinyModel("gqa16", other);
  std::filesystem::copy_file(model, changed);
  EXPECT_EQ(ModelFingerprint(model), ModelFingerprint(changed)) << "not of the name";
  EXPECT_EQ(ModelFingerprint(model).size(), 16u);
  EXPECT_NE(ModelFingerprint(model), ModelFingerprint(other));
  std::fstream file(changed, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(-5, std::ios::end);  // a weight
  file.put('\x55');
  file.close();
  EXPECT_NE(ModelFingerprint(model), ModelFingerprint(changed));
  EXPECT_THROW(ModelFingerprint(folder_ / "none.gguf"), Error);
}

}  // namespace
}  // namespace kvrazor::eval

#include "eval/gguf_header.h"

#include <gtest/gtest.h>

#include <random>

#include "kvrazor/error.h"
#include "tests/eval/gguf_builder.h"

namespace kvrazor::eval {
namespace {

GgufHeader Read(const std::string& content) { return ReadGgufHeader(TemporaryGguf(content).path()); }

void ExpectRefused(const std::string& content, const std::string& part) {
  try {
    Read(content);
    ADD_FAILURE() << "accepted; expected a message with '" << part << "'";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(GgufHeaderTest, ReadsValuesAndTensors) {
  const GgufHeader header = Read(SmallModel().File());
  EXPECT_EQ(header.Text("general.architecture"), "llama");
  EXPECT_EQ(header.Int("llama.block_count"), 3);
  EXPECT_EQ(header.Int("llama.rope.freq_base"), std::nullopt);  // a float
  EXPECT_EQ(header.Int("absent"), std::nullopt);
  ASSERT_NE(header.Array("tokenizer.ggml.tokens"), nullptr);
  EXPECT_EQ(header.Array("tokenizer.ggml.tokens")->length, 4);
  EXPECT_EQ(header.Array("tokenizer.ggml.token_type")->values, (std::vector<int64_t>{1, 1, 3, 1}));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].bytes, 384u * 4 * 2);
  EXPECT_EQ(header.tensors[1].bytes, 384u * 384 / 32 * 20);
  EXPECT_EQ(header.tensor_bytes(), header.tensors[0].bytes + header.tensors[1].bytes);
}

TEST(GgufHeaderTest, GgmlsOwnReaderAgrees) {
  const TemporaryGguf file(SmallModel().File());
  gguf_context* theirs = gguf_init_from_file(file.path().c_str(), {.no_alloc = true, .ctx = nullptr});
  ASSERT_NE(theirs, nullptr);
  const GgufHeader ours = ReadGgufHeader(file.path());
  EXPECT_EQ(gguf_get_data_offset(theirs), ours.data_offset);
  for (int64_t i = 0; i < gguf_get_n_tensors(theirs); ++i) {
    EXPECT_EQ(gguf_get_tensor_offset(theirs, i), ours.tensors[static_cast<size_t>(i)].offset);
    EXPECT_EQ(gguf_get_tensor_size(theirs, i), ours.tensors[static_cast<size_t>(i)].bytes);
  }
  gguf_free(theirs);
}

TEST(GgufHeaderTest, EveryTruncationIsRefused) {
  const std::string whole = SmallModel().File();
  const TemporaryGguf file(whole);
  for (size_t length = 0; length < whole.size(); length += length < 2048 ? 1 : 997) {
    file.Write(whole.substr(0, length));
    EXPECT_THROW(ReadGgufHeader(file.path()), Error) << length << " of " << whole.size() << " bytes";
  }
}

// No flip may crash or hang; those that pass leave numbers that the file bears out. Run under the sanitizers, too.
TEST(GgufHeaderTest, FlippedBytesAreReadOrRefused) {
  const std::string whole = SmallModel().File();
  const size_t header_bytes = SmallModel().Header().size();
  const TemporaryGguf file(whole);
  std::mt19937_64 random(2024);
  int64_t refused = 0;
  constexpr int kRounds = 3000;
  for (int round = 0; round < kRounds; ++round) {
    std::string damaged = whole;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips)
      damaged[random() % header_bytes] = static_cast<char>(random());
    file.Write(damaged);
    try {
      const GgufHeader header = ReadGgufHeader(file.path());
      EXPECT_LE(header.data_offset +
                    (header.tensors.empty() ? 0 : header.tensors.back().offset + header.tensors.back().bytes),
                damaged.size());
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, kRounds / 10);
  EXPECT_LT(refused, kRounds);
}

TEST(GgufHeaderTest, AbsurdCountsAreRefusedBeforeAnythingIsAllocated) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, ~uint64_t{0}}) {
    std::string many_tensors = "GGUF", many_values = "GGUF", long_key = "GGUF";
    GgufBuilder::Put(many_tensors, uint32_t{3});
    GgufBuilder::Put(many_tensors, count);
    GgufBuilder::Put(many_tensors, uint64_t{0});
    ExpectRefused(many_tensors, "tensors");
    GgufBuilder::Put(many_values, uint32_t{3});
    GgufBuilder::Put(many_values, uint64_t{0});
    GgufBuilder::Put(many_values, count);
    ExpectRefused(many_values, "values");
    GgufBuilder::Put(long_key, uint32_t{3});
    GgufBuilder::Put(long_key, uint64_t{0});
    GgufBuilder::Put(long_key, uint64_t{1});
    GgufBuilder::Put(long_key, count);
    long_key.resize(200);
    ExpectRefused(long_key, "a key claims");
  }
}

TEST(GgufHeaderTest, DamageIsNamed) {
  ExpectRefused("", "magic");
  ExpectRefused("GGML" + SmallModel().File().substr(4), "GGUF");
  std::string old = SmallModel().File();
  old[4] = 1;
  ExpectRefused(old, "version 1");
  ExpectRefused(SmallModel().Int("llama.block_count", 4).File(), "twice");
  ExpectRefused(SmallModel().Int("", 4).File(), "empty");
  ExpectRefused(SmallModel().Int("general.alignment", 24).File(), "power of two");
  ExpectRefused(SmallModel().Int("general.alignment", 0).File(), "power of two");
  ExpectRefused(SmallModel().Tensor("token_embd.weight", GGML_TYPE_F16, {32, 1}).File(), "twice");
  ExpectRefused(SmallModel().Tensor("odd", GGML_TYPE_Q4_1, {33}).File(), "multiple of the 32");
  ExpectRefused(SmallModel().Tensor("type", GGML_TYPE_COUNT, {32}).File(), "unknown type");
  ExpectRefused(SmallModel().Tensor("type", 4, {32}).File(), "unknown type");  // a type ggml has removed
  ExpectRefused(SmallModel().Tensor("deep", GGML_TYPE_F16, {2, 2, 2, 2, 2}).File(), "5 dimensions");
  ExpectRefused(SmallModel().Tensor(std::string(64, 'x'), GGML_TYPE_F16, {2}).File(), "name");
  ExpectRefused(SmallModel().SkewOffset(32).Tensor("late", GGML_TYPE_F16, {32}).File(), "offset");
  GgufBuilder huge = SmallModel();
  std::string file = huge.Tensor("huge", GGML_TYPE_F32, {1, 1}).File();
  const size_t at = file.find("huge") + 4 + 4;  // after the name and the number of dimensions
  const int64_t absurd = int64_t{1} << 62;
  file.replace(at, 8, reinterpret_cast<const char*>(&absurd), 8);
  ExpectRefused(file, "more than the file can hold");
}

TEST(GgufHeaderTest, WhatIsNoFileIsSaid) {
  EXPECT_THROW(ReadGgufHeader("/nowhere/model.gguf"), Error);
  EXPECT_THROW(ReadGgufHeader("/tmp"), Error);
  EXPECT_THROW(ReadGgufHeader("/dev/zero"), Error);
}

TEST(GgufPartsTest, NamesOfASplitModel) {
  GgufHeader header;
  header.path = "/models/big.gguf";
  EXPECT_EQ(GgufParts(header), (std::vector<std::string>{"/models/big.gguf"}));
  header.values["split.count"] = int64_t{3};
  header.values["split.no"] = int64_t{0};
  EXPECT_THROW(GgufParts(header), Error);
  header.path = "/models/big-00001-of-00003.gguf";
  EXPECT_EQ(GgufParts(header),
            (std::vector<std::string>{"/models/big-00001-of-00003.gguf", "/models/big-00002-of-00003.gguf",
                                      "/models/big-00003-of-00003.gguf"}));
  header.values["split.count"] = int64_t{1} << 40;
  EXPECT_THROW(GgufParts(header), Error);
}

}  // namespace
}  // namespace kvrazor::eval

#include "eval/model_shape.h"

#include <gtest/gtest.h>

#include "kvrazor/error.h"
#include "tests/eval/gguf_builder.h"

namespace kvrazor::eval {
namespace {

ModelShape Shape(const GgufBuilder& builder) { return ReadModelShape(TemporaryGguf(builder.File()).path()); }

GgufBuilder Base(const std::string& architecture, uint32_t layers) {
  GgufBuilder b;
  b.Text("general.architecture", architecture)
      .Int(architecture + ".block_count", layers)
      .Int(architecture + ".embedding_length", 512);
  return b.Int(architecture + ".context_length", 8192);
}

TEST(ModelShapeTest, PlainModel) {
  const ModelShape shape = Shape(SmallModel());
  EXPECT_EQ(shape.architecture, "llama");
  EXPECT_EQ(shape.vocabulary, 4);
  EXPECT_EQ(shape.trained_context, 4096);
  ASSERT_EQ(shape.layers.size(), 3u);
  EXPECT_EQ(shape.layers[0].kind, LayerKind::kFull);
  EXPECT_EQ(shape.layers[0].num_kv_heads, 2);
  EXPECT_EQ(shape.layers[0].k_head_dim, 64);
  EXPECT_EQ(shape.f16_bytes_per_token(), 3 * 2 * 2 * (64 + 64));
  EXPECT_TRUE(shape.notes.empty());
}

TEST(ModelShapeTest, HeadSizesAndHeadsALayer) {
  GgufBuilder b = Base("x", 3);
  b.Int("x.attention.head_count", 8)
      .Ints("x.attention.head_count_kv", {4, 0, 2})
      .Int("x.attention.key_length", 128)
      .Int("x.attention.value_length", 96);
  const ModelShape shape = Shape(b);
  EXPECT_EQ(shape.layers[0].num_kv_heads, 4);
  EXPECT_EQ(shape.layers[1].kind, LayerKind::kRecurrent);
  EXPECT_EQ(shape.layers[2].v_head_dim, 96);
  EXPECT_EQ(shape.f16_bytes_per_token(), (4 + 2) * (128 + 96) * 2);
}

TEST(ModelShapeTest, SlidingWindows) {
  GgufBuilder b = Base("x", 4);
  b.Int("x.attention.head_count", 8)
      .Int("x.attention.sliding_window", 1024)
      .Ints("x.attention.sliding_window_pattern", {1, 1, 0, 1});
  const ModelShape shape = Shape(b);
  EXPECT_EQ(shape.layers[0].kind, LayerKind::kWindow);
  EXPECT_EQ(shape.layers[0].window, 1024);
  EXPECT_EQ(shape.layers[2].kind, LayerKind::kFull);
  GgufBuilder silent = Base("x", 4);
  silent.Int("x.attention.head_count", 8).Int("x.attention.sliding_window", 1024);
  EXPECT_EQ(Shape(silent).layers[0].kind, LayerKind::kFull);
  EXPECT_EQ(Shape(silent).notes.size(), 1u);
}

TEST(ModelShapeTest, LatentAndRecurrentModels) {
  GgufBuilder latent = Base("x", 2);
  latent.Int("x.attention.head_count", 8).Int("x.attention.kv_lora_rank", 512).Int("x.rope.dimension_count", 64);
  EXPECT_EQ(Shape(latent).layers[0].kind, LayerKind::kLatent);
  EXPECT_EQ(Shape(latent).f16_bytes_per_token(), 2 * 2 * (512 + 64));
  EXPECT_EQ(Shape(Base("x", 2)).f16_bytes_per_token(), 0);  // no heads at all
}

TEST(ModelShapeTest, MissingAndAbsurdNumbersAreNamed) {
  const auto expect = [](const GgufBuilder& builder, const std::string& part) {
    try {
      Shape(builder);
      ADD_FAILURE() << "accepted; expected '" << part << "'";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  expect(GgufBuilder().Int("a", 1), "general.architecture");
  expect(GgufBuilder().Text("general.architecture", "x"), "x.block_count");
  expect(Base("x", 0), "0 layers");
  expect(Base("x", 0xFFFFFFFF), "x.block_count");
  expect(Base("x", 2).Int("x.attention.head_count", 0xFFFFFFFF), "head_count");
  expect(Base("x", 2).Int("x.attention.head_count", 1024), "heads of 0 values");
  expect(Base("x", 2).Ints("x.attention.head_count", {8}), "fewer than its layers");
  expect(Base("x", 2).Ints("x.attention.head_count", {8, -1}), "head_count");
}

}  // namespace
}  // namespace kvrazor::eval

#include "src/cache/rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvrazor {
namespace {

using testing::Each;
using testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr f16_bits kGuard = 0x7d01;

TEST(RowsTest, RoundsToNearestEvenAndClampsFiniteValues) {
  // 1 + 2^-11 and 1 + 3 * 2^-11 lie halfway between f16 values; 65519.9 would round to the largest, 65520 and 1e30 to infinity.
  const std::vector<float> x = {1.0f + 0x1p-11f, 1.0f + 0x3p-11f, 65519.9f, 65520.0f, -1e30f, kInf, -kInf, 0x1p-25f};
  std::vector<f16_bits> out(x.size(), kGuard);
  RowsToF16(TensorView(x.data(), Dtype::kF32, 1, 1, 8), 0, 1, out.data());
  EXPECT_THAT(out, ElementsAre(0x3c00, 0x3c02, 0x7bff, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x0000));

  const std::vector<uint16_t> bf16 = {0x3f80, 0x4780, 0xc780, 0x7f80, 0x0001};  // 1, 65536, -65536, inf, tiny
  out.assign(5, kGuard);
  RowsToF16(TensorView(bf16.data(), Dtype::kBF16, 1, 1, 5), 0, 1, out.data());
  EXPECT_THAT(out, ElementsAre(0x3c00, 0x7bff, 0xfbff, 0x7c00, 0x0000));
}

TEST(RowsTest, NanStaysNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  f16_bits f16 = 0;
  RowsToF16(TensorView(&nan, Dtype::kF32, 1, 1, 1), 0, 1, &f16);
  EXPECT_TRUE(std::isnan(F32FromF16(f16)));
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBF16}) {
    uint16_t stored = 0;
    float back = 0;
    RowsFromF32(&nan, MutableTensorView(&stored, dtype, 1, 1, 1));
    RowsToF32(TensorView(&stored, dtype, 1, 1, 1), &back);
    EXPECT_TRUE(std::isnan(back));
  }
}

TEST(RowsTest, BF16RoundsToNearestEven) {
  // bf16 keeps 8 bits: 1 + 2^-8 and 1 + 3 * 2^-8 are ties.
  const std::vector<float> x = {1.0f + 0x1p-8f, 1.0f + 0x3p-8f, 1.0f + 0x1.1p-8f, -2.0f,
                                std::numeric_limits<float>::max()};
  std::vector<uint16_t> out(5);
  RowsFromF32(x.data(), MutableTensorView(out.data(), Dtype::kBF16, 1, 1, 5));
  EXPECT_THAT(out, ElementsAre(0x3f80, 0x3f82, 0x3f81, 0xc000, 0x7f80));
}

/// Any strides: each element arrives at its place, and nothing between the rows is touched.
TEST(RowsTest, StridesOfEveryType) {
  std::mt19937 random(5);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) {
    for (const bool head_major : {false, true}) {
      for (const int64_t gap : {0, 3}) {
        const int tokens = 5, heads = 3, head_dim = 7;
        const int64_t head_stride = head_major ? (head_dim + gap) * tokens : head_dim + gap;
        const int64_t token_stride = head_major ? head_dim + gap : (head_dim + gap) * heads;
        std::vector<float> values(tokens * heads * head_dim);
        for (float& x : values)
          x = static_cast<float>(static_cast<int>(random() % 255) - 127) / 8;  // exact in every type
        std::vector<float> f32(tokens * heads * (head_dim + gap), -999.0f);
        std::vector<uint16_t> u16(f32.size(), kGuard);
        void* data = dtype == Dtype::kF32 ? static_cast<void*>(f32.data()) : u16.data();
        RowsFromF32(values.data(), MutableTensorView(data, dtype, tokens, heads, head_dim, token_stride, head_stride));
        const auto guards = dtype == Dtype::kF32 ? std::count(f32.begin(), f32.end(), -999.0f)
                                                 : std::count(u16.begin(), u16.end(), kGuard);
        EXPECT_EQ(guards, tokens * heads * gap);

        const TensorView view(data, dtype, tokens, heads, head_dim, token_stride, head_stride);
        std::vector<float> back(values.size(), std::nanf(""));
        RowsToF32(view, back.data());
        EXPECT_EQ(back, values);
        std::vector<f16_bits> middle(2 * heads * head_dim + 1, kGuard);
        RowsToF16(view, 2, 4, middle.data());
        for (int i = 0; i < 2 * heads * head_dim; ++i)
          EXPECT_EQ(F32FromF16(middle[i]), values[2 * heads * head_dim + i]);
        EXPECT_EQ(middle.back(), kGuard);
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor

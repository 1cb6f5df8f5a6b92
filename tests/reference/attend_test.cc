#include "reference/attend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "reference/half.h"
#include "reference/merge.h"

namespace kvrazor::reference {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

/// One kv head of 32 channels in 16 bits; key t is e_t times 2, value t is t + 1 in every channel.
class AttendTest : public testing::Test {
 protected:
  AttendTest() : k_(kPageTokens * 32), v_(kPageTokens * 32), q_(2 * 32, 0.0f), out_(2 * 32) {
    for (int t = 0; t < 32; ++t) {
      k_[t * 32 + t] = EncodeF16(2);
      for (int c = 0; c < 32; ++c) v_[t * 32 + c] = EncodeF16(t + 1);
    }
    format_ = {MakePageLayout({}, Side::kKey, {1, 32}), MakePageLayout({}, Side::kValue, {1, 32})};
    pages_ = {{.k = {.rows = k_.data()}, .v = {.rows = v_.data()}, .num_tokens = 3, .first_key = 0}};
    args_.format = &format_;
    args_.pages = pages_;
    args_.num_qo_heads = 1;
    args_.qo_len = 2;
    args_.softmax_scale = 0.5f;
    args_.q = {q_.data(), 32, 32};
    args_.out = {out_.data(), 32, 32};
    args_.causal_base = 100;
    q_[0] = 3;  // logit 3 with key 0, 0 with the others
  }
  std::vector<f16_bits> k_, v_;
  std::vector<float> q_, out_;
  LayerFormat format_;
  std::vector<AttendPage> pages_;
  AttendArgs args_;
};

TEST_F(AttendTest, SoftmaxByHand) {
  const Attention row = AttendRow(args_, 0, 0);
  const double sum = std::exp(3.0) + 2;
  EXPECT_NEAR(row.lse, std::log(sum), 1e-14);
  for (const double x : row.out) EXPECT_NEAR(x, (std::exp(3.0) * 1 + 2 + 3) / sum, 1e-14);
  EXPECT_NEAR(AttendRow(args_, 1, 0).out[5], 2, 1e-14);  // a zero query: the mean
}

TEST_F(AttendTest, Causal) {
  args_.causal_base = 0;
  EXPECT_NEAR(AttendRow(args_, 0, 0).out[0], 1, 1e-15);
  EXPECT_NEAR(AttendRow(args_, 1, 0).out[0], 1.5, 1e-15);
  args_.causal_base = -1;
  EXPECT_EQ(AttendRow(args_, 0, 0).out[0], 0);
  EXPECT_EQ(AttendRow(args_, 0, 0).lse, kNone);
}

TEST_F(AttendTest, MaskSlopeCapAndSink) {
  std::vector<f16_bits> mask(8, 0xfc00);  // -inf
  mask[1] = EncodeF16(-1);
  mask[2] = EncodeF16(-2);
  args_.mask = mask.data();
  args_.mask_stride = 4;
  const float slope = 0.5f;
  args_.alibi_slopes = &slope;
  const double p = std::exp(-0.5) / (std::exp(-0.5) + std::exp(-1.0));
  EXPECT_NEAR(AttendRow(args_, 0, 0).out[0], 2 * p + 3 * (1 - p), 1e-14);
  EXPECT_EQ(AttendRow(args_, 1, 0).out[0], 0);  // all hidden

  args_.mask = nullptr;
  args_.logit_softcap = 2;
  const double capped = std::exp(2 * std::tanh(1.5));
  const float sink = 1;
  args_.sink_logits = &sink;
  const double sum = capped + 2 + std::exp(1.0);
  EXPECT_NEAR(AttendRow(args_, 0, 0).out[0], (capped + 2 + 3) / sum, 1e-14);
  EXPECT_NEAR(AttendRow(args_, 0, 0).lse, std::log(sum), 1e-14);
  args_.pages = {};
  EXPECT_EQ(AttendRow(args_, 0, 0).out[0], 0);
  EXPECT_NEAR(AttendRow(args_, 0, 0).lse, 1, 1e-15);
}

TEST_F(AttendTest, MergingPartsGivesTheWhole) {
  const Attention whole = AttendRow(args_, 0, 0);
  std::vector<AttendPage> part = pages_;
  part[0].num_tokens = 1;
  args_.pages = part;
  const Attention first = AttendRow(args_, 0, 0);
  part[0] = {.k = {.rows = k_.data() + 32}, .v = {.rows = v_.data() + 32}, .num_tokens = 2, .first_key = 1};
  const Attention rest = AttendRow(args_, 0, 0);
  const Partial joined = Merge({first.out, first.lse}, {rest.out, rest.lse});
  EXPECT_NEAR(joined.lse, whole.lse, 1e-14);
  for (int c = 0; c < 32; ++c) EXPECT_NEAR(joined.out[c], whole.out[c], 1e-14);
  const Partial nothing = {std::vector<double>(32, 7.0), kNone};
  EXPECT_EQ(Merge(nothing, joined).out, joined.out);
  EXPECT_EQ(Merge(joined, nothing).lse, joined.lse);
  EXPECT_EQ(Merge(nothing, nothing).lse, kNone);
}

}  // namespace
}  // namespace kvrazor::reference

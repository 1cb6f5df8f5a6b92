#include "src/backends/cpu/attend.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kvrazor/error.h"
#include "tests/backends/cpu/attend_case.h"
#include "tests/backends/cpu/attend_oracle.h"

namespace kvrazor {
namespace {

using test::AttendCase;
using test::AttendCaseOptions;
using test::Bounded;
using test::MaskKind;

constexpr SideRecipe kF16{};
SideRecipe Affine(int bits, int group, Axis axis, bool rotate, TokenScale token_scale = TokenScale::kNone) {
  return {.codec = Codec::kAffine,
          .bits = bits,
          .group_size = group,
          .axis = axis,
          .token_scale = token_scale,
          .rotate = rotate};
}
SideRecipe RazorKey(int bits) { return {.codec = Codec::kRazorKey, .bits = bits, .rotate = true}; }
SideRecipe Book(int bits) { return {.codec = Codec::kCodebook, .bits = bits, .rotate = true}; }
SideRecipe RazorValue(int bits) { return {.codec = Codec::kRazorValue, .bits = bits, .rotate = true}; }

/// The float64 result of a problem is the same for every instruction set; it takes longer than all of them together.
const test::OracleResult& Oracle(uint64_t id, const AttendArgs& args) {
  static std::map<uint64_t, test::OracleResult> results;
  const auto [at, is_new] = results.try_emplace(id);
  if (is_new) at->second = test::OracleAttend(args);
  return at->second;
}

/// Compares every output with float64 and its bound (one problem a seed). Returns the largest error as a share of its bound.
double ExpectMatches(const AttendCaseOptions& options, Executor& executor) {
  AttendCase problem(options);
  const AttendArgs args = problem.args();
  CheckAttendArgs(args);
  cpu::Attend(args, executor);
  EXPECT_TRUE(problem.GuardsIntact());
  const test::OracleResult& want = Oracle(options.seed, args);
  double worst = 0;
  int failures = 0;
  const int dim = options.v_shape.head_dim;
  for (size_t row = 0; row < want.lse.size() && failures < 5; ++row) {
    const double lse = args.lse[row];
    if (std::isinf(want.lse[row].value)) {
      EXPECT_EQ(lse, want.lse[row].value) << "row " << row;
    } else if (!(std::abs(lse - want.lse[row].value) <= want.lse[row].error)) {
      ADD_FAILURE() << "lse of row " << row << ": " << lse << ", want " << want.lse[row].value << " +- "
                    << want.lse[row].error;
      ++failures;
    }
    for (int c = 0; c < dim && failures < 5; ++c) {
      const Bounded& w = want.out[row * dim + c];
      const double got = args.out.data[row * dim + c];
      if (!(std::abs(got - w.value) <= w.error)) {
        ADD_FAILURE() << "row " << row << " channel " << c << ": " << got << ", want " << w.value << " +- " << w.error;
        ++failures;
      }
      if (w.error > 0) worst = std::max(worst, std::abs(got - w.value) / w.error);
    }
  }
  return worst;
}

/// One instruction set a case.
class AttendTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  // Emulated vectors under a sanitizer take minutes and run the same source: the best target of the build will do there.
  const int64_t supported = hwy::SupportedTargets();
  targets.push_back(supported & -supported);
#else
  for (int64_t all = hwy::SupportedTargets(); all != 0; all &= all - 1) targets.push_back(all & -all);
  if ((hwy::SupportedTargets() & (HWY_EMU128 | HWY_SCALAR)) == 0)
    targets.push_back(HWY_EMU128);  // the portable fallback
#endif
  return targets;
}

std::vector<std::pair<SideRecipe, SideRecipe>> AllCodecs() {
  std::vector<std::pair<SideRecipe, SideRecipe>> all = {{kF16, kF16}};
  for (int bits : {2, 3, 4}) {
    all.emplace_back(Affine(bits, 32, Axis::kPerChannel, true, TokenScale::kAllHeads),
                     Affine(bits, 32, Axis::kPerToken, true));
    all.emplace_back(Affine(bits, 64, Axis::kPerChannel, false), Affine(bits, 64, Axis::kPerToken, false));
    all.emplace_back(Affine(bits, 32, Axis::kPerToken, false, TokenScale::kAllHeads),
                     Affine(bits, 32, Axis::kPerChannel, false));
    all.emplace_back(Affine(bits, 64, Axis::kPerToken, true), Affine(bits, 128, Axis::kPerChannel, true));
    all.emplace_back(RazorKey(bits), RazorValue(bits));
    all.emplace_back(RazorKey(bits), kF16);
    all.emplace_back(kF16, RazorValue(bits));
    all.emplace_back(Book(bits), Book(bits));
  }
  SideRecipe rank_one = RazorKey(3);
  rank_one.rank_one_mean = true;
  for (const int group : {32, 64}) {
    SideRecipe grouped = RazorValue(group == 32 ? 2 : 3);
    grouped.group_size = group;
    all.emplace_back(rank_one, grouped);
  }
  return all;
}

TEST_P(AttendTest, EveryCodecShapeAndRowCountMatchesFloat64) {
  uint64_t seed = 100;
  for (const auto& [k, v] : AllCodecs()) {
    for (int dim : {32, 64, 128, 256}) {
      if (k.codec == Codec::kAffine && k.axis == Axis::kPerToken && k.group_size > dim) continue;
      if (v.codec == Codec::kAffine && v.group_size > dim) continue;
      for (int gqa : {1, 2, 3, 4, 5, 8}) {
        AttendCaseOptions o{.k = k,
                            .v = v,
                            .k_shape = {2, dim},
                            .v_shape = {2, dim},
                            .gqa_ratio = gqa,
                            .qo_len = 1,
                            .kv_len = 300,
                            .exact_tokens = gqa % 3,
                            .seed = ++seed};
        SCOPED_TRACE(testing::Message() << "case " << seed << ": bits " << k.bits << "/" << v.bits << " dim " << dim
                                        << " gqa " << gqa);
        ExpectMatches(o, SerialExecutor());
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(AttendTest, RandomProblemsMatchFloat64) {
  const auto pool = MakeThreadPool(2);
  const auto codecs = AllCodecs();
  const std::vector<int> lengths = {1,   2,   15,  16,  17,  31,  33,  127, 128, 129,
                                    130, 255, 256, 257, 383, 384, 385, 640, 1100};
  std::mt19937_64 random(7);
  const auto pick = [&](const auto& list) { return list[random() % list.size()]; };
  double worst = 0;
  for (int i = 0; i < 160; ++i) {
    AttendCaseOptions o;
    o.seed = random();
    const int dim = pick(std::vector<int>{32, 64, 128, 256});
    o.k_shape = {pick(std::vector<int>{1, 2, 3}), dim};
    o.v_shape = {o.k_shape.num_kv_heads, i % 5 == 0 ? pick(std::vector<int>{32, 64, 128}) : dim};
    do {
      o.k = pick(codecs).first;
      o.v = i % 4 == 0 ? pick(codecs).second : pick(codecs).second;
    } while (o.k.group_size > dim || o.v.group_size > o.v_shape.head_dim);
    o.gqa_ratio = pick(std::vector<int>{1, 2, 3, 4, 7, 8, 16});
    o.kv_len = pick(lengths);
    o.qo_len = std::min(o.kv_len, pick(std::vector<int>{1, 1, 2, 3, 5, 8, 13, 40}));
    while (o.qo_len * o.gqa_ratio > 60) o.qo_len /= 2;
    o.f16_tail = pick(std::vector<int>{0, 64, 128, 200, 300});
    o.v_f16_tail = i % 3 == 0 ? pick(std::vector<int>{0, 128, 256}) : o.f16_tail;
    o.exact_tokens = pick(std::vector<int>{0, 0, 1, 4, 9, 30});
    o.mask = pick(std::vector<MaskKind>{MaskKind::kCausal, MaskKind::kZero, MaskKind::kRandom, MaskKind::kCausalMask});
    o.alibi = o.mask == MaskKind::kRandom && random() % 2;
    o.sinks = random() % 3 == 0;
    o.softcap = random() % 4 == 0 ? 20.0f : 0.0f;
    o.logit_size = pick(std::vector<float>{0.3f, 1.0f, 3.0f});
    SCOPED_TRACE(testing::Message() << "problem " << i << ": kv_len " << o.kv_len << " qo_len " << o.qo_len << " gqa "
                                    << o.gqa_ratio << " dim " << dim << "/" << o.v_shape.head_dim << " mask "
                                    << static_cast<int>(o.mask));
    worst = std::max(worst, ExpectMatches(o, *pool));
    if (HasFailure()) return;
  }
  RecordProperty("largest_share_of_bound", std::to_string(worst));
}

TEST_P(AttendTest, PrefillMatchesFloat64) {
  const auto pool = MakeThreadPool(2);
  uint64_t seed = 900;
  for (const auto& [k, v] : AllCodecs()) {
    for (MaskKind mask : {MaskKind::kCausal, MaskKind::kCausalMask}) {
      AttendCaseOptions o{.k = k,
                          .v = v,
                          .k_shape = {1, 64},
                          .v_shape = {1, 64},
                          .gqa_ratio = 3,
                          .qo_len = 130,
                          .kv_len = 391,
                          .f16_tail = 130,
                          .v_f16_tail = 130,
                          .exact_tokens = 4,
                          .mask = mask,
                          .seed = ++seed};
      SCOPED_TRACE(testing::Message() << "case " << seed);
      ExpectMatches(o, *pool);
      if (HasFailure()) return;
    }
  }
}

TEST_P(AttendTest, ResultDoesNotDependOnThreads) {
  const auto pool = MakeThreadPool(2);
  for (int qo_len : {1, 100}) {
    AttendCaseOptions o{.k = RazorKey(2),
                        .v = RazorValue(2),
                        .k_shape = {2, 64},
                        .v_shape = {2, 64},
                        .gqa_ratio = 4,
                        .qo_len = qo_len,
                        .kv_len = 3000,
                        .seed = 5};
    AttendCase one(o), two(o);
    cpu::Attend(one.args(), SerialExecutor());
    cpu::Attend(two.args(), *pool);
    const AttendArgs a = one.args(), b = two.args();
    for (int64_t i = 0; i < int64_t{qo_len} * 8 * 64; ++i) ASSERT_EQ(a.out.data[i], b.out.data[i]) << i;
    for (int64_t i = 0; i < int64_t{qo_len} * 8; ++i) ASSERT_EQ(a.lse[i], b.lse[i]) << i;
  }
}

TEST_P(AttendTest, RowsThatSeeNothingAreZero) {
  for (int kv_len : {1, 128, 500}) {
    AttendCaseOptions o{.k = RazorKey(2),
                        .v = RazorValue(2),
                        .k_shape = {2, 64},
                        .v_shape = {2, 64},
                        .gqa_ratio = 3,
                        .qo_len = 2,
                        .kv_len = kv_len < 2 ? 2 : kv_len,
                        .mask = MaskKind::kHidden,
                        .seed = 5};
    AttendCase problem(o);
    AttendArgs args = problem.args();
    for (bool no_pages : {false, true}) {
      problem.ClearOutputs();
      if (no_pages) args.pages = {};
      cpu::Attend(args, SerialExecutor());
      for (int i = 0; i < 2 * 6 * 64; ++i) ASSERT_EQ(args.out.data[i], 0.0f);
      for (int i = 0; i < 2 * 6; ++i) ASSERT_EQ(args.lse[i], -std::numeric_limits<float>::infinity());
    }
  }
}

TEST_P(AttendTest, HiddenRowsMayHoldAnything) {
  // Slots of a page behind the newest token were never written: NaN there must not reach the output.
  for (int gqa : {1, 20}) {
    AttendCaseOptions o{.k = kF16,
                        .v = kF16,
                        .k_shape = {1, 64},
                        .v_shape = {1, 64},
                        .gqa_ratio = gqa,
                        .qo_len = 1,
                        .kv_len = 128,
                        .mask = MaskKind::kZero,
                        .seed = 5};
    AttendCase problem(o);
    AttendArgs args = problem.args();
    std::vector<f16_bits> mask(args.mask, args.mask + 128);
    auto* k = const_cast<f16_bits*>(args.pages[0].k.rows);
    auto* v = const_cast<f16_bits*>(args.pages[0].v.rows);
    for (int t = 0; t < 128; ++t) {
      if (t >= 3 && t < 37) continue;
      mask[t] = 0xfc00;
      for (int c = 0; c < 64; ++c) k[t * 64 + c] = v[t * 64 + c] = t % 2 ? 0x7e00 : 0x7c00;
    }
    args.mask = mask.data();
    cpu::Attend(args, SerialExecutor());
    for (int i = 0; i < gqa * 64; ++i) ASSERT_TRUE(std::isfinite(args.out.data[i])) << i;
  }
}

TEST(AttendShapeTest, RefusesHeadSizesWithoutKernel) {
  AttendCaseOptions o{.k = kF16, .v = kF16, .k_shape = {1, 64}, .v_shape = {1, 64}};
  AttendCase problem(o);
  LayerFormat format = problem.format();
  format.k.shape.head_dim = 72;
  AttendArgs args = problem.args();
  args.format = &format;
  EXPECT_THAT([&] { cpu::Attend(args, SerialExecutor()); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("head_dim=72")));
}

INSTANTIATE_TEST_SUITE_P(Targets, AttendTest, testing::ValuesIn(Targets()),
                         [](const testing::TestParamInfo<int64_t>& info) {
                           return std::string(hwy::TargetName(info.param));
                         });

}  // namespace
}  // namespace kvrazor

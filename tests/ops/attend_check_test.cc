#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvrazor/error.h"
#include "src/ops/attend.h"

namespace kvrazor {
namespace {

TEST(AttendCheckTest, NamesTheArgumentThatIsWrong) {
  const Recipe oscar = ParseRecipe("oscar");
  const LayerFormat format{MakePageLayout(oscar.k, Side::kKey, {2, 64}),
                           MakePageLayout(oscar.v, Side::kValue, {2, 64})};
  std::vector<float> q(8 * 64), out(8 * 64);
  std::vector<f16_bits> rows(128 * 128);
  AttendPage page;
  page.k.rows = page.v.rows = rows.data();
  page.num_tokens = 128;
  AttendArgs args;
  args.format = &format;
  args.pages = {&page, 1};
  args.num_qo_heads = 8;
  args.qo_len = 1;
  args.softmax_scale = 0.125f;
  args.q = {q.data(), 512, 64};
  args.out = {out.data(), 512, 64};
  EXPECT_NO_THROW(CheckAttendArgs(args));

  auto expect = [&](auto change, const char* text) {
    AttendArgs broken = args;
    AttendPage broken_page = page;
    broken.pages = {&broken_page, 1};
    change(broken, broken_page);
    try {
      CheckAttendArgs(broken);
      ADD_FAILURE() << "no error for " << text;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(text));
    }
  };
  expect([](AttendArgs& a, AttendPage&) { a.format = nullptr; }, "format");
  expect([](AttendArgs& a, AttendPage&) { a.num_qo_heads = 7; }, "multiple");
  expect([](AttendArgs& a, AttendPage&) { a.q.data = nullptr; }, "q or out");
  expect([](AttendArgs& a, AttendPage&) { a.softmax_scale = NAN; }, "softmax_scale");
  expect([](AttendArgs&, AttendPage& p) { p.num_tokens = 129; }, "129 tokens");
  expect([](AttendArgs&, AttendPage& p) { p.k.rows = nullptr; }, "keys of page 0");
  expect([](AttendArgs&, AttendPage& p) { p.v.sealed = reinterpret_cast<const std::byte*>(&p); }, "values of page 0");
  expect([&](AttendArgs& a, AttendPage& p) { a.mask = rows.data(), a.mask_stride = 100, p.first_key = 0; },
         "100 columns");
}

// out = (e^a x + e^b y) / (e^a + e^b): four roundings a term beside two exponentials (2 ulp each) and one logarithm.
TEST(MergePartialsTest, EqualsTheUnion) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 200; ++i) {
    std::vector<float> a(64), b(64);
    for (float& x : a) x = normal(random);
    for (float& x : b) x = normal(random);
    float lse_a = 20 * normal(random);
    const float lse_b = 20 * normal(random);
    std::vector<double> want(64);
    const double wa = 1.0 / (1.0 + std::exp(double{lse_b} - lse_a));
    for (int c = 0; c < 64; ++c) want[c] = wa * a[c] + (1 - wa) * b[c];
    const double want_lse = std::max(lse_a, lse_b) + std::log1p(std::exp(-std::abs(double{lse_a} - lse_b)));
    MergePartials(a.data(), lse_a, b.data(), lse_b, 64);
    for (int c = 0; c < 64; ++c) EXPECT_NEAR(a[c], want[c], 10 * 0x1p-23 * (4 + std::abs(want[c])));
    EXPECT_NEAR(lse_a, want_lse, 4 * 0x1p-23 * (1 + std::abs(want_lse)));
  }
}

TEST(MergePartialsTest, AnEmptySideChangesNothing) {
  const float none = -std::numeric_limits<float>::infinity();
  std::vector<float> a = {1, 2}, b = {3, 4};
  float lse = 0.5f;
  MergePartials(a.data(), lse, b.data(), none, 2);
  EXPECT_EQ(a, (std::vector<float>{1, 2}));
  lse = none;
  MergePartials(a.data(), lse, b.data(), 0.25f, 2);
  EXPECT_EQ(a, b);
  EXPECT_EQ(lse, 0.25f);
  lse = none;
  MergePartials(a.data(), lse, b.data(), none, 2);
  EXPECT_EQ(lse, none);
}

}  // namespace
}  // namespace kvrazor

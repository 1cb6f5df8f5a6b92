// Sealed bytes of every backend, method and shape against the reference: equal, or different where the judge finds a
// tie.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <set>
#include <string>
#include <tuple>

#include "reference/backend.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/judge.h"

namespace kvrazor::conformance {
namespace {

struct SealCase {
  std::string recipe;
  Side side;
  HeadShape shape;
};
void PrintTo(const SealCase& c, std::ostream* out) {
  *out << c.recipe << (c.side == Side::kKey ? " keys " : " values ") << ShapeName(c.shape);
}

std::vector<SealCase> SealCases() {
  std::vector<SealCase> cases;
  for (const std::string& text : SealedRecipes()) {
    const Recipe recipe = ParseRecipe(text);
    for (const HeadShape shape : Shapes(text, recipe.k)) cases.push_back({text, Side::kKey, shape});
    for (const HeadShape shape : Shapes(text, recipe.v)) cases.push_back({text, Side::kValue, shape});
  }
  return cases;
}

std::string CaseName(const testing::TestParamInfo<SealCase>& info) {
  const SealCase& c = info.param;
  return TestName(c.recipe + (c.side == Side::kKey ? "_keys_" : "_values_") + ShapeName(c.shape));
}

class SealTest : public testing::TestWithParam<SealCase> {
 protected:
  SealTest() {
    const Recipe recipe = ParseRecipe(GetParam().recipe);
    const Side side = GetParam().side;
    layout_ = MakePageLayout(side == Side::kKey ? recipe.k : recipe.v, side, GetParam().shape);
  }

  TestPage Page(PageKind kind) const {
    return MakeTestPage(GetParam().shape, kind,
                        static_cast<uint32_t>(GetParam().shape.head_dim * 100 + GetParam().shape.num_kv_heads));
  }

  Verdict Judge(const TestPage& page, const reference::Rows& rows, const std::byte* bytes) const {
    Verdict verdict;
    const Trial trial = {layout_, page.exact, rows, page.rows.data(), page.moment_or_null(), bytes};
    switch (layout_.recipe.codec) {
      case Codec::kF16: break;
      case Codec::kAffine: JudgeAffine(trial, verdict); break;
      case Codec::kCodebook: JudgeCodebook(trial, verdict); break;
      case Codec::kRazorKey: JudgeRazorKey(trial, verdict); break;
      case Codec::kRazorValue: JudgeRazorValue(trial, verdict); break;
    }
    return verdict;
  }

  double Objective(const TestPage& page, const reference::Rows& rows, const std::byte* bytes) const {
    const Trial trial = {layout_, page.exact, rows, page.rows.data(), page.moment_or_null(), bytes};
    return layout_.recipe.codec == Codec::kRazorKey ? MetricError(trial) : SquaredError(trial);
  }

  void CheckTarget(int64_t target, PageKind kind, const TestPage& page, const reference::Rows& rows,
                   const Guarded<std::byte>& want);

  PageLayout layout_;
  std::set<std::string> judged_;  // targets mostly agree to the last bit
};

// Bytes that ties may change. A tie in a group's zero point changes its codes, one in a channel's or token's scale
// search (razor) a column or row, and feedback spreads the tie of one code over the rest of its token. Degenerate
// pages are mostly ties.
double AllowedBytes(const PageLayout& layout, PageKind kind) {
  const double bytes = static_cast<double>(layout.page_bytes);
  if (kind == PageKind::kDegenerate) return 0.5 * bytes;
  const double line = std::max(kPageTokens, layout.shape.head_dim) * layout.recipe.bits / 8.0 + 4;
  switch (layout.recipe.codec) {
    case Codec::kF16: break;
    case Codec::kAffine:
    case Codec::kCodebook: return line;
    case Codec::kRazorKey: return 0.004 * bytes + line;
    case Codec::kRazorValue: return 0.002 * bytes + line;
  }
  return 0;
}

void SealTest::CheckTarget(int64_t target, PageKind kind, const TestPage& page, const reference::Rows& rows,
                           const Guarded<std::byte>& want) {
  const BackendOnTarget backend(target);
  Guarded<std::byte> got(layout_.page_bytes, 0xaa);
  Guarded<std::byte> again(layout_.page_bytes, 0x55);
  backend->Seal(layout_, page.rows.data(), page.exact, page.moment_or_null(), got.data());
  backend->Seal(layout_, page.rows.data(), page.exact, page.moment_or_null(), again.data());
  ASSERT_TRUE(got.intact() && again.intact()) << "wrote beside the page";
  ASSERT_EQ(std::memcmp(got.data(), again.data(), layout_.page_bytes), 0) << "some bytes were not written";

  int64_t different = 0;
  for (int64_t i = 0; i < layout_.page_bytes; ++i) different += got[i] != want.data()[i];
  RecordProperty("different_bytes_" + TargetName(target) + "_" + TestName(KindName(kind)), static_cast<int>(different));
  if (different == 0) return;
  EXPECT_LE(different, AllowedBytes(layout_, kind));
  const std::string bytes(reinterpret_cast<const char*>(got.data()), static_cast<size_t>(layout_.page_bytes));
  if (!judged_.insert(bytes).second) return;  // judged on another target
  const Verdict verdict = Judge(page, rows, got.data());
  EXPECT_EQ(verdict.num_faults, 0) << verdict.Text();
  // Ties are as good one way as the other.
  const double best = Objective(page, rows, want.data());
  EXPECT_LE(Objective(page, rows, got.data()), best * 1.01 + 1e-9) << "worse than the reference";
}

TEST_P(SealTest, BytesAreTheReferencesUpToTies) {
  for (const PageKind kind : kPageKinds) {
    const TestPage page = Page(kind);
    const reference::Rows rows(layout_, page.rows.data());
    Guarded<std::byte> want(layout_.page_bytes, 0);
    ReferenceBackend().Seal(layout_, page.rows.data(), page.exact, page.moment_or_null(), want.data());
    for (const int64_t target : Targets()) {
      SCOPED_TRACE(TargetName(target) + ", page of kind " + KindName(kind));
      CheckTarget(target, kind, page, rows, want);
    }
    judged_.clear();
  }
}

/// Two kv heads of each head_dim.
std::vector<SealCase> JudgeCases() {
  std::vector<SealCase> cases = SealCases();
  std::erase_if(cases, [](const SealCase& c) { return c.shape.num_kv_heads != 2; });
  return cases;
}

// The judge accepts the reference itself: every parameter and code is looked at, tie or not.
class JudgeTest : public SealTest {};

TEST_P(JudgeTest, AcceptsTheReference) {
  for (const PageKind kind : kPageKinds) {
    const TestPage page = Page(kind);
    const reference::Rows rows(layout_, page.rows.data());
    Guarded<std::byte> want(layout_.page_bytes, 0);
    ReferenceBackend().Seal(layout_, page.rows.data(), page.exact, page.moment_or_null(), want.data());
    const Verdict verdict = Judge(page, rows, want.data());
    EXPECT_EQ(verdict.num_faults, 0) << KindName(kind) << ": " << verdict.Text();
  }
}

INSTANTIATE_TEST_SUITE_P(All, SealTest, testing::ValuesIn(SealCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(All, JudgeTest, testing::ValuesIn(JudgeCases()), CaseName);

}  // namespace
}  // namespace kvrazor::conformance

// Pages sealed on the GPU, read through the page conversion, against the float64 reference: equal bytes, or the neighbour that an error of
// f32 explains (tests/conformance/judge.h). Where that happens, the number of bytes is bounded as for the CPU backend.
#include "src/backends/cuda/seal.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>

#include "kvrazor/error.h"
#include "reference/backend.h"
#include "tests/backends/cuda/store_case.h"
#include "tests/conformance/judge.h"

namespace kvrazor::cuda {
namespace {

using conformance::PageKind;
using conformance::TestPage;

/// Keys and values of a page to seal: the same exact tokens for both.
struct TestPages {
  TestPage k, v;
};
TestPages MakePages(HeadShape shape, PageKind kind) {
  return {conformance::MakeTestPage(shape, kind, 17), conformance::MakeTestPage(shape, kind, 18)};
}

/// As in tests/conformance/seal_test.cc: what ties may change.
double AllowedBytes(const PageLayout& layout, PageKind kind) {
  const double bytes = static_cast<double>(layout.page_bytes);
  if (kind == PageKind::kDegenerate) return 0.5 * bytes;
  const double line = std::max(kPageTokens, layout.shape.head_dim) * layout.recipe.bits / 8.0 + 4;
  switch (layout.recipe.codec) {
    case Codec::kRazorKey: return 0.004 * bytes + line;
    case Codec::kRazorValue: return 0.002 * bytes + line;
    default: return line;
  }
}

class CudaSealTest : public testing::TestWithParam<FormatCase> {
 protected:
  static constexpr int kPages = 3;  // the middle one is written
  static constexpr int kTarget = 1;
  static constexpr int kSinks = 2;  // sequences with sink rows, the second one is written

  CudaSealTest() : format_(Format(GetParam())) {}

  SealJob Job(const TestPages& pages, int source, bool with_sink) const {
    SealJob job{.source = source, .target = kTarget, .sink = with_sink ? 1 : -1, .table_entry = 5};
    for (int t = 0; t < kPageTokens; ++t) {
      if (pages.k.exact.Test(t)) job.exact[t / 32] |= 1u << (t % 32);
    }
    return job;
  }

  std::vector<std::byte> RowPage(const TestPages& pages) const {
    std::vector<std::byte> rows(static_cast<size_t>(format_.row_page_bytes()));
    PackRows(format_, kPageTokens, kPageTokens, pages.k.rows.data(), pages.v.rows.data(), rows.data());
    return rows;
  }

  /// The factor of the page's second moment, or nothing.
  std::unique_ptr<DeviceBuffer<std::byte>> Metric(const TestPages& pages) const {
    if (format_.layer.k.recipe.codec != Codec::kRazorKey || !pages.k.has_moment) return nullptr;
    const HeadShape shape = GetParam().shape;
    const MetricPlan plan({.head_dim = shape.head_dim,
                           .num_kv_heads = shape.num_kv_heads,
                           .num_qo_heads = shape.num_kv_heads,
                           .plain = format_.kind == cuda::PageKind::kPlain},
                          CurrentDevice());
    plan.Init();
    const DeviceBuffer<float> moment(SquareMoment(pages.k.moment));
    auto metric = std::make_unique<DeviceBuffer<std::byte>>(static_cast<size_t>(plan.metric_bytes()));
    plan.Factor(moment.data(), metric->data(), nullptr);
    CheckCuda(cudaDeviceSynchronize());
    return metric;
  }

  void CheckSide(const PageLayout& layout, PageKind kind, const TestPage& page, const std::vector<std::byte>& got);

  PackedFormat format_;
};

void CudaSealTest::CheckSide(const PageLayout& layout, PageKind kind, const TestPage& page,
                             const std::vector<std::byte>& got) {
  conformance::Guarded<std::byte> want(layout.page_bytes, 0);
  ReferenceBackend().Seal(layout, page.rows.data(), page.exact, page.moment_or_null(), want.data());
  int64_t different = 0;
  for (int64_t i = 0; i < layout.page_bytes; ++i) different += got[static_cast<size_t>(i)] != want.data()[i];
  const std::string name = (layout.side == Side::kKey ? "keys_" : "values_") + conformance::TestName(KindName(kind));
  RecordProperty("different_bytes_" + name, static_cast<int>(different));
  if (different == 0) return;
  EXPECT_LE(different, AllowedBytes(layout, kind));
  const reference::Rows rows(layout, page.rows.data());
  const conformance::Trial trial = {layout, page.exact, rows, page.rows.data(), page.moment_or_null(), got.data()};
  const conformance::Trial best = {layout, page.exact, rows, page.rows.data(), page.moment_or_null(), want.data()};
  conformance::Verdict verdict;
  if (layout.recipe.codec == Codec::kAffine) JudgeAffine(trial, verdict);
  if (layout.recipe.codec == Codec::kCodebook) JudgeCodebook(trial, verdict);
  if (layout.recipe.codec == Codec::kRazorKey) JudgeRazorKey(trial, verdict);
  if (layout.recipe.codec == Codec::kRazorValue) JudgeRazorValue(trial, verdict);
  EXPECT_EQ(verdict.num_faults, 0) << name << ", " << different << " bytes differ: " << verdict.Text();
  const auto objective = layout.recipe.codec == Codec::kRazorKey ? conformance::MetricError : conformance::SquaredError;
  EXPECT_LE(objective(trial), objective(best) * 1.01 + 1e-9) << "worse than the reference";
}

TEST_P(CudaSealTest, BytesAreTheReferencesUpToTies) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const SealPlan plan({.format = format_, .max_jobs = 2}, CurrentDevice());
  plan.Init();
  for (const PageKind kind : conformance::kPageKinds) {
    SCOPED_TRACE(KindName(kind));
    TestPages pages = MakePages(GetParam().shape, kind);
    pages.v.exact = pages.k.exact;
    const auto metric = Metric(pages);
    // Rows 16 tokens into longer arrays, wider than they need to be.
    const int64_t row = int64_t{format_.num_kv_heads} * format_.head_dim, stride = row + 24;
    constexpr int kFirst = 16;
    const auto spread = [&](const std::vector<f16_bits>& from) {
      std::vector<f16_bits> to(static_cast<size_t>((kFirst + kPageTokens) * stride), 0x7e00);
      for (int t = 0; t < kPageTokens; ++t)
        std::copy_n(from.begin() + t * row, row, to.begin() + (kFirst + t) * stride);
      return to;
    };
    const DeviceBuffer<f16_bits> k(spread(pages.k.rows)), v(spread(pages.v.rows));
    const DeviceBuffer<std::byte> row_pages(RowPage(pages));
    std::vector<std::vector<std::byte>> results;
    // Twice from the rows onto different bytes, so that a byte that is not written shows; once from a row page.
    for (const int fill : {0xaa, 0x55, 0x33}) {
      const bool from_row_page = fill == 0x33;
      const DeviceBuffer<SealJob> jobs(
          std::vector<SealJob>{SealJob{.source = 0, .target = -1}, Job(pages, from_row_page ? ~0 : kFirst, true)});
      DeviceBuffer<std::byte> packed(static_cast<size_t>(kPages * format_.page_bytes()), fill);
      DeviceBuffer<std::byte> sinks(static_cast<size_t>(kSinks * format_.sink_bytes()), fill);
      DeviceBuffer<int32_t> table(8, fill);
      plan.Run({.k = k.data(),
                .v = v.data(),
                .token_stride = stride,
                .row_pages = row_pages.data(),
                .packed_pages = packed.data(),
                .sink_rows = sinks.data(),
                .page_table = table.data(),
                .jobs = jobs.data(),
                .num_jobs = 2,
                .metric = metric ? metric->data() : nullptr},
               nullptr);
      CheckCuda(cudaDeviceSynchronize());
      const auto bytes = packed.Download();
      const auto page_at = bytes.begin() + kTarget * format_.page_bytes();
      for (auto at = bytes.begin(); at != bytes.end(); ++at) {
        if (at >= page_at && at < page_at + format_.page_bytes()) continue;
        ASSERT_EQ(*at, static_cast<std::byte>(fill)) << "wrote beside the page";
      }
      results.emplace_back(page_at, page_at + format_.page_bytes());
      const auto entries = table.Download();
      for (int i = 0; i < 8; ++i) EXPECT_EQ(entries[i], i == 5 ? kTarget : fill * 0x01010101) << "table entry " << i;
      // The first exact tokens, as they were.
      const auto sink = sinks.Download();
      const int count = std::min(16, pages.k.exact.Count());
      std::vector<f16_bits> k_rows(static_cast<size_t>(count * row)), v_rows(k_rows.size()), k_want, v_want;
      UnpackRows(format_, 16, count, sink.data() + format_.sink_bytes(), k_rows.data(), v_rows.data());
      for (int t = 0; t < kPageTokens && k_want.size() < k_rows.size(); ++t) {
        if (!pages.k.exact.Test(t)) continue;
        k_want.insert(k_want.end(), pages.k.rows.begin() + t * row, pages.k.rows.begin() + (t + 1) * row);
        v_want.insert(v_want.end(), pages.v.rows.begin() + t * row, pages.v.rows.begin() + (t + 1) * row);
      }
      EXPECT_EQ(k_rows, k_want);
      EXPECT_EQ(v_rows, v_want);
    }
    EXPECT_EQ(results[0], results[1]) << "some bytes were not written, or differ from run to run";
    EXPECT_EQ(results[0], results[2]) << "rows and row page give different pages";
    std::vector<std::byte> k_page(static_cast<size_t>(format_.layer.k.page_bytes)),
        v_page(static_cast<size_t>(format_.layer.v.page_bytes));
    UnpackPage(format_, results[0].data(), k_page.data(), v_page.data());
    std::vector<std::byte> packed_again(results[0].size());
    PackPage(format_, k_page.data(), v_page.data(), packed_again.data());
    EXPECT_EQ(packed_again, results[0]) << "not a page that the conversion knows";
    CheckSide(format_.layer.k, kind, pages.k, k_page);
    CheckSide(format_.layer.v, kind, pages.v, v_page);
  }
}

// Many pages in one launch are what each is alone; a graph follows jobs that changed in device memory.
TEST_P(CudaSealTest, ManyPagesAndGraphs) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  constexpr int kMany = 37;
  const SealPlan plan({.format = format_, .max_jobs = kMany}, CurrentDevice());
  plan.Init();
  std::mt19937 random(3);
  const int64_t row = int64_t{format_.num_kv_heads} * format_.head_dim;
  std::vector<f16_bits> k_rows(static_cast<size_t>(kMany * kPageTokens * row)), v_rows(k_rows.size());
  for (f16_bits& x : k_rows) x = RandomFinite(random);
  for (f16_bits& x : v_rows) x = RandomFinite(random);
  const DeviceBuffer<f16_bits> k(k_rows), v(v_rows);
  std::vector<SealJob> list(kMany);
  for (int i = 0; i < kMany; ++i) list[i] = {.source = i * kPageTokens, .target = kMany - 1 - i};
  DeviceBuffer<SealJob> jobs(list);
  DeviceBuffer<std::byte> packed(static_cast<size_t>(kMany * format_.page_bytes()), 0xaa),
      single(static_cast<size_t>(format_.page_bytes()), 0x55);
  SealArrays arrays{
      .k = k.data(), .v = v.data(), .packed_pages = packed.data(), .jobs = jobs.data(), .num_jobs = kMany};
  ReplayTwice([&](cudaStream_t stream) { plan.Run(arrays, stream); });
  const auto all = packed.Download();
  for (const int i : {0, 20, kMany - 1}) {
    const DeviceBuffer<SealJob> one(std::vector<SealJob>{{.source = i * kPageTokens, .target = 0}});
    SealArrays alone = arrays;
    alone.packed_pages = single.data();
    alone.jobs = one.data();
    alone.num_jobs = 1;
    plan.Run(alone, nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const auto want = single.Download();
    EXPECT_EQ(std::memcmp(want.data(), all.data() + (kMany - 1 - i) * format_.page_bytes(), want.size()), 0)
        << "page " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaSealTest, testing::ValuesIn(FormatCases()), FormatName);
INSTANTIATE_TEST_SUITE_P(PlainPages, CudaSealTest, testing::ValuesIn(PlainFormatCases()), FormatName);

TEST(CudaSealPlanTest, RefusesWhatCannotBe) {
  if (Built({{"oscar", {9, 64}}, {"oscar", {8, 128}}}).size() < 2)
    GTEST_SKIP() << "this build has no kernels for one of head_dim 64 and 128";
  const Device device{.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448};
  const auto message = [&](SealSpec spec, Device d) -> std::string {
    try {
      const SealPlan plan(spec, d);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  const PackedFormat format = Format({"oscar", {8, 128}});
  Device old = device;
  old.compute_major = 8;
  Device small = device;
  small.shared_bytes = 1024;
  EXPECT_THAT(message({.format = format, .max_jobs = 1}, old),
              testing::HasSubstr("compute capability 8.x); they need 9.0"));
  EXPECT_THAT(message({.format = format, .max_jobs = 1}, small), testing::HasSubstr("shared memory"));
  EXPECT_THAT(message({.format = format, .max_jobs = 70000}, device), testing::HasSubstr("max_jobs=70000"));
  EXPECT_THAT(message({.format = format, .max_jobs = -1}, device), testing::HasSubstr("max_jobs=-1"));
  EXPECT_THAT(message({.format = format, .max_tokens = -1}, device), testing::HasSubstr("max_tokens=-1"));

  const SealPlan plan({.format = format, .max_jobs = 2}, device);
  EXPECT_THAT(plan.Explain(), testing::HasSubstr("cluster of 8 heads"));
  EXPECT_THAT(SealPlan({.format = Format({"oscar", {9, 64}}), .max_jobs = 2}, device).Explain(),
              testing::HasSubstr("10 times"));
  const auto refused = [&](SealArrays arrays) -> std::string {
    try {
      plan.Run(arrays, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  alignas(16) static std::byte memory[64];
  const auto* rows = reinterpret_cast<const f16_bits*>(memory);
  const auto* jobs = reinterpret_cast<const SealJob*>(memory);
  EXPECT_THAT(refused({.num_jobs = 3}), testing::HasSubstr("num_jobs=3"));
  EXPECT_THAT(refused({.num_jobs = 1}), testing::HasSubstr("jobs and packed_pages"));
  EXPECT_THAT(refused({.packed_pages = memory, .jobs = jobs, .num_jobs = 1}), testing::HasSubstr("no rows"));
  EXPECT_THAT(refused({.k = rows, .v = rows, .token_stride = 12, .packed_pages = memory, .jobs = jobs, .num_jobs = 1}),
              testing::HasSubstr("token_stride=12"));
  EXPECT_THAT(refused({.k = rows + 1, .v = rows, .packed_pages = memory, .jobs = jobs, .num_jobs = 1}),
              testing::HasSubstr("16-byte aligned"));
}

}  // namespace
}  // namespace kvrazor::cuda

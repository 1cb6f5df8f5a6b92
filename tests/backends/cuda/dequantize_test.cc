// Packed pages read back on the GPU against the float64 reading of the same bytes.
#include "src/backends/cuda/dequantize.h"

#include <gmock/gmock.h>

#include <cmath>

#include "kvrazor/error.h"
#include "reference/backend.h"
#include "reference/dequantize.h"
#include "src/core/half.h"
#include "tests/backends/cuda/store_case.h"

namespace kvrazor::cuda {
namespace {

class CudaDequantizeTest : public testing::TestWithParam<FormatCase> {
 protected:
  CudaDequantizeTest() : format_(Format(GetParam())), row_(int64_t{format_.num_kv_heads} * format_.head_dim) {}

  /// A sealed CPU page of one side and what it holds.
  struct Sealed {
    std::vector<std::byte> page;
    std::vector<reference::Sum> values;  // [128][heads][D]
  };
  Sealed Seal(const PageLayout& layout, uint32_t seed) const {
    const auto source = conformance::MakeTestPage(GetParam().shape, conformance::PageKind::kOutliers, seed);
    Sealed sealed;
    sealed.page.resize(static_cast<size_t>(layout.page_bytes));
    ReferenceBackend().Seal(layout, source.rows.data(), {}, nullptr, sealed.page.data());
    PageSide side;
    side.sealed = sealed.page.data();
    for (int t = 0; t < kPageTokens; ++t) {
      for (int h = 0; h < format_.num_kv_heads; ++h) {
        for (const auto& x : reference::DequantizeHead(layout, side, t, h)) sealed.values.push_back(x);
      }
    }
    return sealed;
  }

  void Check(const std::vector<f16_bits>& got, const std::vector<reference::Sum>& want,
             const std::vector<f16_bits>& sinks, const char* what) {
    for (size_t i = 0; i < want.size(); ++i) {
      if (i < sinks.size()) {
        ASSERT_EQ(got[i], sinks[i]) << what << " sink value " << i;
        continue;
      }
      // A few f32 operations on each stored term, log2(D) additions, and the rounding to f16.
      const double error = conformance::Gamma(std::log2(format_.head_dim) + 8) * want[i].magnitude;
      const double allowed = error + 0x1p-11 * (std::abs(want[i].value) + error) + 0x1p-25;
      ASSERT_LE(std::abs(F32FromF16(got[i]) - want[i].value), allowed)
          << what << " value " << i << " of token " << i / static_cast<size_t>(row_);
    }
  }

  PackedFormat format_;
  int64_t row_;
};

TEST_P(CudaDequantizeTest, RowsAreTheReferences) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const Sealed k = Seal(format_.layer.k, 3), v = Seal(format_.layer.v, 4);
  std::vector<std::byte> packed(static_cast<size_t>(2 * format_.page_bytes()), std::byte{0xff});
  PackPage(format_, k.page.data(), v.page.data(), packed.data() + format_.page_bytes());
  constexpr int kSinks = 3;
  std::mt19937 random(8);
  std::vector<f16_bits> sink_k(static_cast<size_t>(kSinks * row_)), sink_v(sink_k.size());
  for (f16_bits& x : sink_k) x = RandomFinite(random);
  for (f16_bits& x : sink_v) x = RandomFinite(random);
  std::vector<std::byte> sinks(static_cast<size_t>(2 * format_.sink_bytes()), std::byte{0xff});
  PackRows(format_, 16, kSinks, sink_k.data(), sink_v.data(), sinks.data() + format_.sink_bytes());
  const DeviceBuffer<std::byte> d_packed(packed), d_sinks(sinks);
  const DequantizePlan plan({.format = format_, .max_jobs = 3}, CurrentDevice());
  const int64_t stride = row_ + 8;
  constexpr int kFirst = 5;
  DeviceBuffer<f16_bits> d_k(static_cast<size_t>((kFirst + kPageTokens + 1) * stride)),
      d_v(static_cast<size_t>((kFirst + kPageTokens + 1) * stride));
  DeviceBuffer<std::byte> row_pages(static_cast<size_t>(2 * format_.row_page_bytes()));
  const DeviceBuffer<DequantizeJob> jobs(
      std::vector<DequantizeJob>{{.source = 1, .target = kFirst},
                                 {.source = -1, .target = 0},
                                 {.source = 1, .target = ~1, .sink = 1, .exact_tokens = kSinks}});
  const DequantizeArrays arrays{.packed_pages = d_packed.data(),
                                .sink_rows = d_sinks.data(),
                                .k = d_k.data(),
                                .v = d_v.data(),
                                .token_stride = stride,
                                .row_pages = row_pages.data(),
                                .jobs = jobs.data(),
                                .num_jobs = 3};
  ReplayTwice([&](cudaStream_t stream) { plan.Run(arrays, stream); });

  const auto tight = [&](const std::vector<f16_bits>& from) {
    std::vector<f16_bits> to;
    for (size_t i = 0; i < from.size(); ++i) {
      const int64_t t = static_cast<int64_t>(i) / stride - kFirst, c = static_cast<int64_t>(i) % stride;
      if (t >= 0 && t < kPageTokens && c < row_) {
        to.push_back(from[i]);
      } else {
        EXPECT_EQ(from[i], 0xffff) << "wrote beside the rows";
      }
    }
    return to;
  };
  Check(tight(d_k.Download()), k.values, {}, "key");
  Check(tight(d_v.Download()), v.values, {}, "value");
  const auto thawed = row_pages.Download();
  for (int64_t i = 0; i < format_.row_page_bytes(); ++i)
    ASSERT_EQ(thawed[i], std::byte{0xff}) << "wrote beside the row page";
  std::vector<f16_bits> k_rows(static_cast<size_t>(kPageTokens * row_)), v_rows(k_rows.size());
  UnpackRows(format_, kPageTokens, kPageTokens, thawed.data() + format_.row_page_bytes(), k_rows.data(), v_rows.data());
  Check(k_rows, k.values, sink_k, "thawed key");
  Check(v_rows, v.values, sink_v, "thawed value");
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaDequantizeTest, testing::ValuesIn(FormatCases()), FormatName);
INSTANTIATE_TEST_SUITE_P(PlainPages, CudaDequantizeTest, testing::ValuesIn(PlainFormatCases()), FormatName);

TEST(CudaDequantizePlanTest, RefusesWhatCannotBe) {
  const Device device{.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448};
  const PackedFormat format = Format({"kivi", {2, 128}});
  const DequantizePlan plan({.format = format, .max_jobs = 1}, device);
  const auto refused = [&](DequantizeArrays arrays) -> std::string {
    try {
      plan.Run(arrays, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  alignas(16) static std::byte memory[64];
  const auto* jobs = reinterpret_cast<const DequantizeJob*>(memory);
  EXPECT_THAT(refused({.num_jobs = 2}), testing::HasSubstr("num_jobs=2"));
  EXPECT_THAT(refused({.packed_pages = memory, .jobs = jobs, .num_jobs = 1}), testing::HasSubstr("nowhere to write"));
  EXPECT_THROW(DequantizePlan({.format = format, .max_jobs = 100000}, device), Error);
}

}  // namespace
}  // namespace kvrazor::cuda

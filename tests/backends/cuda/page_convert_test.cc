// CPU pages to packed pages and back: nothing may be lost, on the host and on the device.
#include "src/backends/cuda/page_convert.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "kvrazor/error.h"
#include "reference/backend.h"
#include "src/core/half.h"
#include "tests/backends/cuda/device_buffer.h"

namespace kvrazor::cuda {
namespace {

LayerFormat MakeLayer(const std::string& text, HeadShape shape) {
  const Recipe recipe = ParseRecipe(text);
  return {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)};
}

struct Case {
  std::string recipe;
  int head_dim;
  int compute_major = kPackedComputeMajor;  // below: plain pages
};

class PageConvertTest : public testing::TestWithParam<Case> {
 protected:
  PageConvertTest()
      : format_(MakePackedFormat(MakeLayer(GetParam().recipe, {3, GetParam().head_dim}), GetParam().compute_major)) {}

  /// A sealed page of one side. Some rows are zero, so that parameters of every kind appear.
  std::vector<std::byte> SealRandom(const PageLayout& layout) {
    std::normal_distribution<float> normal;
    std::vector<f16_bits> rows(static_cast<size_t>(kPageTokens * layout.row_values()));
    for (size_t i = 0; i < rows.size(); ++i) {
      const bool zero = i / static_cast<size_t>(layout.row_values()) == 17;
      rows[i] = F16FromF32(zero ? 0.f : 3 * normal(random_) + static_cast<float>(i % 7) - 3);
    }
    std::vector<std::byte> page(static_cast<size_t>(layout.page_bytes), std::byte{0xa5});
    ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
    return page;
  }

  PackedFormat format_;
  std::mt19937 random_{7};
};

TEST_P(PageConvertTest, RoundTripGivesTheSameBytes) {
  const auto k = SealRandom(format_.layer.k);
  const auto v = SealRandom(format_.layer.v);
  std::vector<std::byte> packed(static_cast<size_t>(format_.page_bytes()), std::byte{0x5a});
  std::vector<std::byte> k_back(k.size(), std::byte{0x5a}), v_back(v.size(), std::byte{0x5a});
  PackPage(format_, k.data(), v.data(), packed.data());
  UnpackPage(format_, packed.data(), k_back.data(), v_back.data());
  EXPECT_EQ(k_back, k);
  EXPECT_EQ(v_back, v);
}

TEST_P(PageConvertTest, DeviceGivesTheBytesOfTheHost) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  constexpr int kPages = 3;
  std::vector<std::byte> k, v, want;
  for (int i = 0; i < kPages; ++i) {
    const auto k_page = SealRandom(format_.layer.k);
    const auto v_page = SealRandom(format_.layer.v);
    std::vector<std::byte> packed(static_cast<size_t>(format_.page_bytes()));
    PackPage(format_, k_page.data(), v_page.data(), packed.data());
    k.insert(k.end(), k_page.begin(), k_page.end());
    v.insert(v.end(), v_page.begin(), v_page.end());
    want.insert(want.end(), packed.begin(), packed.end());
  }
  const DeviceBuffer<std::byte> d_k(k), d_v(v), d_packed(want.size()), d_k_back(k.size()), d_v_back(v.size());
  PackPagesAsync(format_, kPages, d_k.data(), d_v.data(), d_packed.data(), nullptr);
  UnpackPagesAsync(format_, kPages, d_packed.data(), d_k_back.data(), d_v_back.data(), nullptr);
  EXPECT_EQ(d_packed.Download(), want);
  EXPECT_EQ(d_k_back.Download(), k);
  EXPECT_EQ(d_v_back.Download(), v);
}

TEST_P(PageConvertTest, RowsRoundTrip) {
  for (const int capacity : {16, 128}) {
    for (const int num_tokens : {0, 1, capacity - 1, capacity}) {
      const size_t values = static_cast<size_t>(num_tokens) * 3 * static_cast<size_t>(GetParam().head_dim);
      std::vector<f16_bits> k(values), v(values), k_back(values), v_back(values);
      for (f16_bits& x : k) x = static_cast<f16_bits>(random_());
      for (f16_bits& x : v) x = static_cast<f16_bits>(random_());
      std::vector<std::byte> packed(
          static_cast<size_t>(capacity == 16 ? format_.sink_bytes() : format_.row_page_bytes()));
      PackRows(format_, capacity, num_tokens, k.data(), v.data(), packed.data());
      UnpackRows(format_, capacity, num_tokens, packed.data(), k_back.data(), v_back.data());
      EXPECT_EQ(k_back, k) << capacity << " " << num_tokens;
      EXPECT_EQ(v_back, v) << capacity << " " << num_tokens;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, PageConvertTest,
    testing::Values(Case{"razor-2", 64}, Case{"razor-2", 128}, Case{"razor-2r", 64}, Case{"razor-2:k3", 128},
                    Case{"razor-3", 64}, Case{"razor-3", 128}, Case{"razor-3v", 64}, Case{"razor-3v", 128},
                    Case{"razor-2:v2g64", 128}, Case{"oscar", 64}, Case{"oscar", 128}, Case{"kivi", 128},
                    Case{"oscar:k2g128,v2g64", 128}, Case{"oscar:k4g32", 64}, Case{"kivi:v4g32", 128},
                    Case{"oscar:k4g64,v4g32", 128}, Case{"quarot", 64}, Case{"turboquant-2.5", 128},
                    Case{"oscar:k3g32", 128}, Case{"razor-3v", 256}, Case{"oscar", 256}, Case{"oscar-kernel", 64},
                    Case{"razor-2", 128, 8}, Case{"oscar", 64, 8}),
    [](const auto& info) {
      std::string name = info.param.recipe + "_" + std::to_string(info.param.head_dim) +
                         (info.param.compute_major < kPackedComputeMajor ? "_plain" : "");
      std::replace_if(
          name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
      return name;
    });

TEST(PackedFormatTest, PicksThePageThatKernelsReadFastest) {
  const auto kind = [](const std::string& recipe, HeadShape shape, int compute_major) {
    return MakePackedFormat(MakeLayer(recipe, shape), compute_major).kind;
  };
  EXPECT_EQ(kind("razor-2", {2, 128}, 9), PageKind::kRazor);
  EXPECT_EQ(kind("oscar", {2, 64}, 10), PageKind::kAffine);
  EXPECT_EQ(kind("razor-2", {2, 128}, 8), PageKind::kPlain);
  EXPECT_EQ(kind("razor-2", {2, 256}, 9), PageKind::kPlain);
  EXPECT_EQ(kind("razor-2:k4", {2, 128}, 9), PageKind::kPlain);
  EXPECT_EQ(kind("oscar:k3g32", {2, 128}, 9), PageKind::kPlain);
  EXPECT_EQ(kind("oscar-kernel", {2, 128}, 9), PageKind::kPlain) << "values are not rotated";
  EXPECT_EQ(kind("quarot", {2, 128}, 9), PageKind::kPlain);
  EXPECT_EQ(kind("turboquant-2", {2, 128}, 9), PageKind::kPlain);
  EXPECT_EQ(FormatText(MakePackedFormat(MakeLayer("turboquant-2.5", {2, 128}))),
            "plain pages of 3-bit codebook keys and 2-bit codebook values");
}

// Whatever `kvrazor methods` lists, the GPU can keep.
TEST(PackedFormatTest, EveryMethodHasAPage) {
  for (const Method& method : Methods()) {
    const Recipe recipe = method.recipe.ForModel(2);
    for (const int layer : {0, 1}) {
      const Recipe of_layer = recipe.ForLayer(layer);
      if (of_layer.is_f16()) continue;
      for (const int head_dim : {64, 128, 256}) {
        const HeadShape shape{2, head_dim};
        EXPECT_NO_THROW(MakePackedFormat(
            {MakePageLayout(of_layer.k, Side::kKey, shape), MakePageLayout(of_layer.v, Side::kValue, shape)}))
            << method.name << " at head_dim " << head_dim;
      }
    }
  }
}

TEST(PackedFormatTest, RefusesWhatHasNoPage) {
  const auto message = [](const std::string& recipe, HeadShape shape) -> std::string {
    try {
      MakePackedFormat(MakeLayer(recipe, shape));
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message("razor-2", {2, 32}), testing::HasSubstr("head_dim=32; possible are 64, 128 and 256"));
  EXPECT_THAT(message("f16", {2, 128}), testing::HasSubstr("16-bit keys"));
}

}  // namespace
}  // namespace kvrazor::cuda

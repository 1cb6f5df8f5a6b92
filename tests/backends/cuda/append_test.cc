// New rows go to the row pages that their slots say, unchanged (f16) or rounded (bf16), and pages are sealed in the same launch.
#include <gmock/gmock.h>

#include <bit>
#include <cstring>

#include "kvrazor/error.h"
#include "reference/half.h"
#include "tests/backends/cuda/store_case.h"

namespace kvrazor::cuda {
namespace {

constexpr int kRowPages = 4;

class CudaAppendTest : public testing::TestWithParam<FormatCase> {
 protected:
  CudaAppendTest() : format_(Format(GetParam())), row_(int64_t{format_.num_kv_heads} * format_.head_dim) {}

  /// Slots of `count` tokens: every page edge first, then random ones, each at most once; some that must not be stored.
  std::vector<int32_t> Slots(int count) {
    std::vector<int32_t> free;
    for (int s = 2 * kPageTokens; s < kRowPages * kPageTokens; ++s)
      free.push_back(s);  // pages 0 and 1 are sealed meanwhile
    std::shuffle(free.begin(), free.end(), random_);
    std::vector<int32_t> slots = {2 * kPageTokens,         3 * kPageTokens - 1, 3 * kPageTokens, -1,
                                  kRowPages * kPageTokens, INT32_MAX,           INT32_MIN};
    for (const int32_t s : free) {
      if (std::find(slots.begin(), slots.end(), s) == slots.end()) slots.push_back(s);
    }
    slots.resize(static_cast<size_t>(count), -7);
    return slots;
  }

  PackedFormat format_;
  int64_t row_;
  std::mt19937 random_{11};
};

TEST_P(CudaAppendTest, StoresRowsAndSealsPages) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  std::vector<f16_bits> old_k(static_cast<size_t>(kRowPages * kPageTokens * row_)), old_v(old_k.size());
  for (f16_bits& x : old_k) x = RandomFinite(random_);
  for (f16_bits& x : old_v) x = RandomFinite(random_);
  std::vector<std::byte> pool;
  for (int p = 0; p < kRowPages; ++p) {
    std::vector<std::byte> page(static_cast<size_t>(format_.row_page_bytes()));
    PackRows(format_, kPageTokens, kPageTokens, &old_k[p * kPageTokens * row_], &old_v[p * kPageTokens * row_],
             page.data());
    pool.insert(pool.end(), page.begin(), page.end());
  }
  for (const bool bf16 : {false, true}) {
    for (const int num_tokens : {0, 1, 15, 16, 17, 64}) {
      SCOPED_TRACE(std::to_string(num_tokens) + (bf16 ? " bf16" : " f16") + " tokens");
      const SealPlan plan({.format = format_, .max_jobs = 2, .max_tokens = 64, .bf16 = bf16}, CurrentDevice());
      plan.Init();
      const int64_t stride = row_ + 8;
      std::vector<uint16_t> k(static_cast<size_t>(std::max<int64_t>(1, num_tokens) * stride)), v(k.size());
      for (uint16_t& x : k) x = static_cast<uint16_t>(random_());  // every bit pattern
      for (uint16_t& x : v) x = static_cast<uint16_t>(random_());
      const std::vector<int32_t> slots = Slots(num_tokens);
      const DeviceBuffer<uint16_t> d_k(k), d_v(v);
      const DeviceBuffer<int32_t> d_slots(slots);
      const DeviceBuffer<std::byte> rows(pool);
      const DeviceBuffer<SealJob> jobs(std::vector<SealJob>{{.source = ~0, .target = 1}, {.source = ~1, .target = 0}});
      DeviceBuffer<std::byte> packed(static_cast<size_t>(2 * format_.page_bytes()), 0x11),
          alone(static_cast<size_t>(2 * format_.page_bytes()), 0x22);
      const SealArrays arrays{
          .row_pages = rows.data(), .packed_pages = packed.data(), .jobs = jobs.data(), .num_jobs = 2};
      const AppendArrays tokens{.k = d_k.data(),
                                .v = d_v.data(),
                                .token_stride = stride,
                                .slots = d_slots.data(),
                                .row_pages = rows.data(),
                                .num_row_pages = kRowPages,
                                .num_tokens = num_tokens};
      ReplayTwice([&](cudaStream_t stream) { plan.Append(tokens, arrays, stream); });

      std::vector<f16_bits> want_k = old_k, want_v = old_v;
      const auto stored = [&](uint16_t x) -> f16_bits {
        if (!bf16) return x;
        const float value = std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
        return value != value ? f16_bits{0x7e00} : reference::EncodeFiniteF16(value);
      };
      for (int t = 0; t < num_tokens; ++t) {
        if (slots[t] < 0 || slots[t] >= kRowPages * kPageTokens) continue;
        for (int64_t i = 0; i < row_; ++i) {
          want_k[slots[t] * row_ + i] = stored(k[t * stride + i]);
          want_v[slots[t] * row_ + i] = stored(v[t * stride + i]);
        }
      }
      const auto got = rows.Download();
      for (int p = 0; p < kRowPages; ++p) {
        std::vector<f16_bits> k_page(static_cast<size_t>(kPageTokens * row_)), v_page(k_page.size());
        UnpackRows(format_, kPageTokens, kPageTokens, got.data() + p * format_.row_page_bytes(), k_page.data(),
                   v_page.data());
        EXPECT_TRUE(std::equal(k_page.begin(), k_page.end(), want_k.begin() + p * kPageTokens * row_))
            << "keys of page " << p;
        EXPECT_TRUE(std::equal(v_page.begin(), v_page.end(), want_v.begin() + p * kPageTokens * row_))
            << "values of page " << p;
      }
      SealArrays separately = arrays;
      separately.packed_pages = alone.data();
      plan.Run(separately, nullptr);
      CheckCuda(cudaDeviceSynchronize());
      EXPECT_EQ(packed.Download(), alone.Download());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaAppendTest,
                         testing::ValuesIn(Built({{"razor-2", {2, 64}},
                                                  {"razor-2", {3, 128}},
                                                  {"razor-3", {1, 128}},
                                                  {"razor-3v", {2, 64}},
                                                  {"oscar", {8, 128}},
                                                  {"oscar", {9, 64}},
                                                  {"kivi", {2, 128}},
                                                  {"oscar:k4g32,v4g32", {2, 128}},
                                                  {"quarot", {3, 256}},
                                                  {"turboquant-2.5", {2, 64}},
                                                  {"oscar", {2, 128}, kPlainComputeMajor}})),
                         FormatName);

TEST(CudaAppendPlanTest, RefusesWhatCannotBe) {
  if (Built({{"razor-2", {2, 128}}}).empty()) GTEST_SKIP() << "this build has no kernels for head_dim 128";
  const Device device{.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448};
  const SealPlan plan({.format = Format({"razor-2", {2, 128}}), .max_tokens = 4}, device);
  EXPECT_THAT(plan.Explain(), testing::HasSubstr("append of up to 4 f16 tokens"));
  alignas(16) static std::byte memory[64];
  const auto refused = [&](AppendArrays tokens) -> std::string {
    try {
      plan.Append(tokens, {}, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  const auto* slots = reinterpret_cast<const int32_t*>(memory);
  EXPECT_THAT(refused({.num_tokens = 5}), testing::HasSubstr("num_tokens=5"));
  EXPECT_THAT(refused({.num_tokens = -1}), testing::HasSubstr("num_tokens=-1"));
  EXPECT_THAT(refused({.k = memory, .v = memory, .slots = slots, .num_tokens = 1}),
              testing::HasSubstr("must not be null"));
  EXPECT_THAT(refused({.k = memory, .v = memory, .slots = slots, .row_pages = memory, .num_tokens = 1}),
              testing::HasSubstr("num_row_pages=0"));
  EXPECT_THAT(refused({.k = memory,
                       .v = memory,
                       .head_stride = 4,
                       .slots = slots,
                       .row_pages = memory,
                       .num_row_pages = 1,
                       .num_tokens = 1}),
              testing::HasSubstr("head_stride"));
}

}  // namespace
}  // namespace kvrazor::cuda

#include "kvrazor/c_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kvrazor/cache.h"
#include "src/core/half.h"
#include "src/ops/backend.h"

namespace kvrazor {
namespace {

using testing::HasSubstr;

constexpr int kHeads = 2, kDim = 32, kPage = KVRAZOR_PAGE_TOKENS;

std::vector<float> Rows(uint64_t seed, int64_t tokens, int heads) {
  std::vector<float> rows(static_cast<size_t>(tokens * heads * kDim));
  for (float& x : rows) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<float>(static_cast<int64_t>(seed >> 44) - (1 << 19)) / (1 << 18);
  }
  return rows;
}

kvrazor_tensor Tensor(std::vector<float>& rows, int64_t tokens, int heads) {
  return {rows.data(), KVRAZOR_F32, heads, kDim, tokens, 0, 0};
}

kvrazor_cache_options Options(const char* recipe) {
  kvrazor_cache_options o;
  kvrazor_cache_options_init(&o);
  o.recipe = recipe;
  o.num_layers = 1;
  o.num_kv_heads = kHeads;
  o.head_dim = kDim;
  o.max_tokens = 2048;
  return o;
}

struct CacheDeleter {
  void operator()(kvrazor_cache* c) const { kvrazor_cache_destroy(c); }
};
struct FormatDeleter {
  void operator()(kvrazor_format* f) const { kvrazor_format_destroy(f); }
};

std::unique_ptr<kvrazor_cache, CacheDeleter> MakeCache(const char* recipe) {
  const kvrazor_cache_options o = Options(recipe);
  kvrazor_cache* cache = nullptr;
  EXPECT_EQ(kvrazor_cache_create(&o, &cache), KVRAZOR_OK) << kvrazor_last_error();
  return std::unique_ptr<kvrazor_cache, CacheDeleter>(cache);
}

/// The same steps through both interfaces give the same bits.
TEST(CApiTest, IsTheCppCache) {
  const auto c = MakeCache("razor-2");
  CacheOptions o;
  o.num_layers = 1;
  o.shape = {kHeads, kDim};
  o.recipe = ParseRecipe("razor-2");
  o.max_tokens = 2048;
  Cache cpp(o);
  int64_t seq = -1;
  ASSERT_EQ(kvrazor_cache_open(c.get(), &seq), KVRAZOR_OK);
  const SequenceId cpp_seq = cpp.Open();
  for (const int64_t tokens : {int64_t{300}, int64_t{1}, int64_t{130}}) {
    std::vector<float> k = Rows(1, tokens, kHeads), v = Rows(2, tokens, kHeads), q = Rows(3, tokens, 4),
                       out(q.size(), NAN), want = out;
    const kvrazor_tensor kt = Tensor(k, tokens, kHeads), vt = Tensor(v, tokens, kHeads), qt = Tensor(q, tokens, 4),
                         ot = Tensor(out, tokens, 4);
    ASSERT_EQ(kvrazor_cache_begin(c.get(), &seq, &tokens, 1), KVRAZOR_OK);
    ASSERT_EQ(kvrazor_cache_append(c.get(), 0, &seq, 1, &kt, &vt), KVRAZOR_OK);
    ASSERT_EQ(kvrazor_cache_add_queries(c.get(), 0, &seq, 1, &qt), KVRAZOR_OK);
    ASSERT_EQ(kvrazor_cache_attend(c.get(), 0, &seq, 1, &qt, &ot, nullptr, nullptr), KVRAZOR_OK);
    ASSERT_EQ(kvrazor_cache_commit(c.get(), &seq, 1, nullptr), KVRAZOR_OK);
    ASSERT_EQ(cpp.Begin(cpp_seq, tokens), Status::kOk);
    cpp.Append(0, cpp_seq, {k.data(), Dtype::kF32, tokens, kHeads, kDim},
               {v.data(), Dtype::kF32, tokens, kHeads, kDim});
    cpp.AddQueries(0, cpp_seq, {q.data(), Dtype::kF32, tokens, 4, kDim});
    cpp.Attend(0, cpp_seq, {q.data(), Dtype::kF32, tokens, 4, kDim}, {want.data(), Dtype::kF32, tokens, 4, kDim});
    cpp.Commit(cpp_seq);
    EXPECT_EQ(std::memcmp(out.data(), want.data(), out.size() * sizeof(float)), 0);
  }
  int64_t kv_len = 0, sealed_len = 0;
  ASSERT_EQ(kvrazor_cache_length(c.get(), seq, &kv_len, &sealed_len), KVRAZOR_OK);
  EXPECT_EQ(kv_len, 431);
  EXPECT_EQ(sealed_len, 2 * kPage);
  for (const int side : {KVRAZOR_KEY, KVRAZOR_VALUE}) {
    std::vector<float> got(static_cast<size_t>(kv_len * kHeads * kDim), NAN), want = got;
    ASSERT_EQ(kvrazor_cache_read(c.get(), seq, 0, side, 0, kv_len, got.data()), KVRAZOR_OK);
    cpp.Read(cpp_seq, 0, Side{side}, 0, kv_len, want.data());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
  }
  kvrazor_cache_stats s;
  ASSERT_EQ(kvrazor_cache_get_stats(c.get(), &s), KVRAZOR_OK);
  const CacheStats t = cpp.Stats();
  EXPECT_EQ(s.total_bytes, t.total_bytes);
  EXPECT_EQ(s.peak_bytes, t.peak_bytes);
  EXPECT_EQ(s.exact_bytes, t.exact_bytes);
  EXPECT_EQ(s.pages_sealed, t.pages_sealed);
  EXPECT_EQ(s.bits_per_value, t.bits_per_value);

  int64_t fork = -1;
  ASSERT_EQ(kvrazor_cache_fork(c.get(), seq, &fork), KVRAZOR_OK);
  ASSERT_EQ(kvrazor_cache_roll_back(c.get(), fork, 31), KVRAZOR_OK);
  ASSERT_EQ(kvrazor_cache_truncate(c.get(), seq, 100), KVRAZOR_OK);
  ASSERT_EQ(kvrazor_cache_length(c.get(), fork, &kv_len, nullptr), KVRAZOR_OK);
  EXPECT_EQ(kv_len, 400);
  ASSERT_EQ(kvrazor_cache_free(c.get(), fork), KVRAZOR_OK);
  EXPECT_EQ(kvrazor_cache_free(c.get(), fork), KVRAZOR_ERROR);
}

/// Sealing, reading and attending on the caller's own pages is what the backend does.
TEST(CApiTest, OpsOnRawPages) {
  for (const char* recipe : {"kivi", "oscar", "razor-2", "razor-3v", "turboquant-3"}) {
    kvrazor_format* made = nullptr;
    ASSERT_EQ(kvrazor_format_create(recipe, 0, kHeads, kDim, &made), KVRAZOR_OK) << kvrazor_last_error();
    const std::unique_ptr<kvrazor_format, FormatDeleter> format(made);
    kvrazor_moment* moment = nullptr;
    ASSERT_EQ(kvrazor_moment_create(format.get(), &moment), KVRAZOR_OK);
    std::vector<float> q = Rows(9, 8, 4);
    const kvrazor_tensor qt = Tensor(q, 8, 4);
    ASSERT_EQ(kvrazor_moment_add(moment, &qt, 2), KVRAZOR_OK);

    const HeadShape shape{kHeads, kDim};
    const Recipe r = ParseRecipe(recipe);
    SecondMoment want_moment(shape);
    CpuBackend().AddQueries(want_moment, {q.data(), 4 * kDim, kDim}, 8, 4, 2);
    LayerFormat want_format{MakePageLayout(r.k, Side::kKey, shape), MakePageLayout(r.v, Side::kValue, shape)};

    std::vector<uint16_t> rows[2];
    std::byte* sealed[2] = {};
    for (const int side : {KVRAZOR_KEY, KVRAZOR_VALUE}) {
      const PageLayout& want = side == KVRAZOR_KEY ? want_format.k : want_format.v;
      kvrazor_page_layout layout;
      ASSERT_EQ(kvrazor_format_layout(format.get(), side, &layout), KVRAZOR_OK);
      EXPECT_EQ(layout.page_bytes, want.page_bytes);
      EXPECT_EQ(layout.codes_bytes, want.codes_bytes);
      EXPECT_EQ(layout.scale_at, want.scale_at);
      EXPECT_EQ(layout.high_codes_at, want.high_codes_at);
      EXPECT_EQ(layout.mean_factor_at, want.mean_factor_at);
      EXPECT_EQ(layout.bits_per_value, want.bits_per_value());
      EXPECT_EQ(layout.sink_tokens, r.sink_tokens);
      for (const float x : Rows(static_cast<uint64_t>(side) + 20, kPage, kHeads)) rows[side].push_back(F16FromF32(x));
      const size_t size = static_cast<size_t>(layout.page_bytes + 63) / 64 * 64;
      sealed[side] = static_cast<std::byte*>(std::aligned_alloc(64, size));
      std::byte* expected = static_cast<std::byte*>(std::aligned_alloc(64, size));
      const uint64_t exact[2] = {0x5, 0x1};  // tokens 0, 2 and 64
      TokenMask mask;
      mask.words = {exact[0], exact[1]};
      ASSERT_EQ(kvrazor_seal(format.get(), side, rows[side].data(), exact, moment, sealed[side]), KVRAZOR_OK)
          << kvrazor_last_error();
      CpuBackend().Seal(want, rows[side].data(), mask, &want_moment, expected);
      EXPECT_EQ(std::memcmp(sealed[side], expected, static_cast<size_t>(layout.page_bytes)), 0);
      std::free(expected);
    }

    std::vector<uint16_t> exact_rows[2];
    kvrazor_attend_page page = {};
    page.num_tokens = kPage;
    for (const int side : {KVRAZOR_KEY, KVRAZOR_VALUE}) {
      for (const int t : {0, 2, 64})
        exact_rows[side].insert(exact_rows[side].end(), rows[side].begin() + t * kHeads * kDim,
                                rows[side].begin() + (t + 1) * kHeads * kDim);
      (side == KVRAZOR_KEY ? page.k : page.v) = {sealed[side], nullptr, exact_rows[side].data(), {0x5, 0x1}};
    }
    std::vector<float> values(static_cast<size_t>(63 * kHeads * kDim), NAN), want_values = values;
    ASSERT_EQ(kvrazor_dequantize(format.get(), KVRAZOR_VALUE, &page.v, 2, 65, values.data()), KVRAZOR_OK);
    PageSide k{sealed[0], nullptr, exact_rows[0].data(), {}}, v{sealed[1], nullptr, exact_rows[1].data(), {}};
    k.exact.words = v.exact.words = {0x5, 0x1};
    CpuBackend().Dequantize(want_format.v, v, 2, 65, want_values.data());
    EXPECT_EQ(values, want_values);
    EXPECT_EQ(values[0], F32FromF16(rows[1][2 * kHeads * kDim])) << "token 2 is exact";

    std::vector<float> out(q.size(), NAN), want_out = out;
    const kvrazor_tensor ot = Tensor(out, 8, 4);
    ASSERT_EQ(kvrazor_attend(format.get(), &page, 1, &qt, &ot, kPage - 8, nullptr, nullptr), KVRAZOR_OK)
        << kvrazor_last_error();
    const AttendPage want_page{k, v, kPage, 0};
    AttendArgs args;
    args.format = &want_format;
    args.pages = {&want_page, 1};
    args.num_qo_heads = 4;
    args.qo_len = 8;
    args.softmax_scale = 1.0f / std::sqrt(static_cast<float>(kDim));
    args.q = {q.data(), 4 * kDim, kDim};
    args.out = {want_out.data(), 4 * kDim, kDim};
    args.causal_base = kPage - 8;
    CpuBackend().Attend(args, SerialExecutor());
    EXPECT_EQ(out, want_out);
    for (std::byte* bytes : sealed) std::free(bytes);
    kvrazor_moment_destroy(moment);
  }
}

TEST(CApiTest, RecipeText) {
  char text[64];
  size_t length = 0;
  ASSERT_EQ(kvrazor_recipe_text(" razor-2:sinks=4 ;0-1=f16", text, sizeof(text), &length), KVRAZOR_OK);
  EXPECT_STREQ(text, "razor-2;0-1=f16");
  EXPECT_EQ(length, 15u);
  ASSERT_EQ(kvrazor_recipe_text("razor-2;0-1=f16", text, 6, &length), KVRAZOR_OK);
  EXPECT_STREQ(text, "razor");
  EXPECT_EQ(length, 15u);
  EXPECT_EQ(kvrazor_recipe_text("oscar", nullptr, 0, nullptr), KVRAZOR_OK);
  EXPECT_EQ(kvrazor_recipe_text("oskar", text, sizeof(text), nullptr), KVRAZOR_ERROR);
  EXPECT_THAT(kvrazor_last_error(), HasSubstr("no method 'oskar'"));
}

TEST(CApiTest, MisuseIsAnErrorWithAReason) {
  const auto c = MakeCache("kivi");
  int64_t seq = 0, one = 1;
  ASSERT_EQ(kvrazor_cache_open(c.get(), &seq), KVRAZOR_OK);
  std::vector<float> rows = Rows(1, 1, kHeads);
  kvrazor_tensor t = Tensor(rows, 1, kHeads);
  auto expect = [](int status, const char* reason) {
    EXPECT_EQ(status, KVRAZOR_ERROR);
    EXPECT_THAT(kvrazor_last_error(), HasSubstr(reason));
  };
  expect(kvrazor_cache_create(nullptr, nullptr), "cache is NULL");
  kvrazor_cache* made = nullptr;
  expect(kvrazor_cache_create(nullptr, &made), "options is NULL");
  kvrazor_cache_options o = Options(nullptr);
  expect(kvrazor_cache_create(&o, &made), "options.recipe is NULL");
  o = Options("kivi");
  o.head_dim = 7;
  expect(kvrazor_cache_create(&o, &made), "head_dim");
  EXPECT_EQ(made, nullptr);
  expect(kvrazor_cache_open(nullptr, &seq), "cache is NULL");
  expect(kvrazor_cache_open(c.get(), nullptr), "seq is NULL");
  expect(kvrazor_cache_begin(c.get(), nullptr, &one, 1), "seqs is NULL");
  expect(kvrazor_cache_begin(c.get(), &seq, nullptr, 1), "new_tokens is NULL");
  expect(kvrazor_cache_begin(c.get(), &seq, &one, -1), "num_seqs is -1");
  expect(kvrazor_cache_append(c.get(), 0, &seq, 1, &t, &t), "call Begin first");
  expect(kvrazor_cache_truncate(c.get(), seq, 1), "0 to 0 are possible");
  expect(kvrazor_cache_read(c.get(), seq, 0, 2, 0, 0, nullptr), "side is 2");
  ASSERT_EQ(kvrazor_cache_begin(c.get(), &seq, &one, 1), KVRAZOR_OK);
  expect(kvrazor_cache_append(c.get(), 0, &seq, 1, nullptr, &t), "k is NULL");
  t.dtype = 17;
  expect(kvrazor_cache_append(c.get(), 0, &seq, 1, &t, &t), "unknown dtype 17");
  expect(kvrazor_cache_commit(c.get(), &seq, 1, nullptr), "append the others");

  kvrazor_format* format = nullptr;
  expect(kvrazor_format_create("kivi", -1, kHeads, kDim, &format), "layers count from 0");
  ASSERT_EQ(kvrazor_format_create("kivi", 0, kHeads, kDim, &format), KVRAZOR_OK);
  alignas(64) static std::byte page[1 << 16];
  static const uint16_t f16_rows[kPage * kHeads * kDim] = {};
  expect(kvrazor_seal(format, KVRAZOR_KEY, f16_rows, nullptr, nullptr, page + 8), "not 64-byte aligned");
  expect(kvrazor_seal(format, KVRAZOR_KEY, nullptr, nullptr, nullptr, page), "rows is NULL");
  kvrazor_page_side side = {};
  expect(kvrazor_dequantize(format, KVRAZOR_KEY, &side, 0, 1, rows.data()), "either sealed bytes or rows");
  side.sealed = page;
  expect(kvrazor_dequantize(format, KVRAZOR_KEY, &side, 0, 129, rows.data()), "0 to 128 are possible");
  side.exact[0] = 1;
  expect(kvrazor_dequantize(format, KVRAZOR_KEY, &side, 0, 1, rows.data()), "exact_rows");
  kvrazor_format_destroy(format);

  kvrazor_threads* threads = nullptr;
  expect(kvrazor_threads_create(0, &threads), "thread");
  kvrazor_threads_destroy(nullptr);
  kvrazor_cache_destroy(nullptr);
}

TEST(CApiTest, OutOfPagesIsAStatus) {
  kvrazor_cache_options o = Options("kivi");
  o.max_tokens = 0;
  o.sealed_pages = 1;
  o.f16_pages = 2;
  kvrazor_cache* made = nullptr;
  ASSERT_EQ(kvrazor_cache_create(&o, &made), KVRAZOR_OK);
  const std::unique_ptr<kvrazor_cache, CacheDeleter> c(made);
  int64_t seqs[2];
  const int64_t tokens[2] = {2 * kPage, 1};
  ASSERT_EQ(kvrazor_cache_open(c.get(), &seqs[0]), KVRAZOR_OK);
  ASSERT_EQ(kvrazor_cache_open(c.get(), &seqs[1]), KVRAZOR_OK);
  EXPECT_EQ(kvrazor_cache_begin(c.get(), seqs, tokens, 2), KVRAZOR_OUT_OF_PAGES);
  EXPECT_THAT(kvrazor_last_error(), HasSubstr("nothing was changed"));
  EXPECT_EQ(kvrazor_cache_begin(c.get(), seqs, tokens, 1), KVRAZOR_OK);
}

TEST(CApiTest, TheLastErrorBelongsToTheThread) {
  EXPECT_EQ(kvrazor_cache_open(nullptr, nullptr), KVRAZOR_ERROR);
  const std::string mine = kvrazor_last_error();
  std::string first, then;
  std::thread other([&] {
    first = kvrazor_last_error();
    (void)kvrazor_recipe_text("nope", nullptr, 0, nullptr);
    then = kvrazor_last_error();
  });
  other.join();
  EXPECT_EQ(first, "");
  EXPECT_THAT(then, HasSubstr("nope"));
  EXPECT_EQ(kvrazor_last_error(), mine);
}

}  // namespace
}  // namespace kvrazor

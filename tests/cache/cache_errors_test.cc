// Misuse: refused with a sentence that helps, and nothing is changed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/cache/toy_cache.h"

namespace kvrazor::test {
namespace {

using testing::HasSubstr;

constexpr int64_t P = kPageTokens;

std::string ErrorOf(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

class CacheErrorsTest : public testing::Test {
 protected:
  CacheErrorsTest() : c("kivi", 10, 10), idle(c.Make(1, 4 * P)), busy(c.Make(5000, P - 1)) {
    EXPECT_EQ(c.cache.Begin(busy, 2), Status::kOk);
    before = c.cache.Stats();
  }
  ~CacheErrorsTest() override { EXPECT_EQ(c.cache.Stats(), before); }

  /// Both tokens of `busy`, as it should be: their rows take memory.
  void AppendRightly(int layer) {
    EXPECT_EQ(c.cache.Stats(), before);
    c.cache.Append(layer, busy, Zeros(2), Zeros(2));
    before = c.cache.Stats();
  }

  TensorView Zeros(int64_t tokens, int heads = 1, int head_dim = 32, Dtype dtype = Dtype::kF32) const {
    return {zeros.data(), dtype, tokens, heads, head_dim};
  }

  ToyCache c;
  SequenceId idle, busy;
  CacheStats before;
  std::vector<float> zeros = std::vector<float>(4096);
};

TEST_F(CacheErrorsTest, Handles) {
  const SequenceId bad{77};
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { c.cache.Free(bad); }, [&] { (void)c.cache.Fork(bad); }, [&] { c.cache.RollBack(bad, 0); },
           [&] { (void)c.cache.Truncate(bad, 0); }, [&] { (void)c.cache.Begin(bad, 1); }, [&] { c.cache.Commit(bad); },
           [&] { c.cache.Cancel(bad); }, [&] { (void)c.cache.kv_len(bad); },
           [&] { c.cache.Append(0, bad, Zeros(1), Zeros(1)); },
           [&] {
             c.cache.Attend(0, bad, Zeros(1), {zeros.data(), Dtype::kF32, 1, 1, 32});
           },
           [&] { c.cache.Free(kNoSequence); }}) {
    EXPECT_THAT(ErrorOf(use), HasSubstr("Use a handle from Open or Fork"));
  }
  EXPECT_FALSE(c.cache.IsOpen(bad));
}

TEST_F(CacheErrorsTest, SequencesInAStepAndNot) {
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { (void)c.cache.Begin(busy, 1); }, [&] { (void)c.cache.Fork(busy); }, [&] { c.cache.RollBack(busy, 1); },
           [&] { (void)c.cache.Truncate(busy, 0); }}) {
    EXPECT_THAT(ErrorOf(use), HasSubstr("is in a step of 2 tokens; Commit or Cancel it first"));
  }
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { c.cache.Commit(idle); }, [&] { c.cache.Cancel(idle); },
           [&] { c.cache.Append(0, idle, Zeros(1), Zeros(1)); }, [&] { c.cache.AddQueries(0, idle, Zeros(1)); }}) {
    EXPECT_THAT(ErrorOf(use), HasSubstr("call Begin"));
  }
  const std::vector<SequenceId> twice = {busy, busy};
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(0, twice, Zeros(4), Zeros(4)); }), HasSubstr("given twice"));
  const std::vector<NewTokens> both = {{idle, 1}, {idle, 1}};
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Begin(both); }), HasSubstr("given twice"));
}

TEST_F(CacheErrorsTest, LayersComeInOrder) {
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(1, busy, Zeros(2), Zeros(2)); }), HasSubstr("layer 0 is next"));
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(2, busy, Zeros(2), Zeros(2)); }), HasSubstr("the cache has layers 0 to 1"));
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(-1, busy, Zeros(2), Zeros(2)); }), HasSubstr("the cache has layers 0 to 1"));
  EXPECT_THAT(ErrorOf([&] {
                c.cache.Attend(0, busy, Zeros(2), {zeros.data(), Dtype::kF32, 2, 1, 32});
              }),
              HasSubstr("Append it first"));
  EXPECT_THAT(ErrorOf([&] { c.cache.Commit(busy); }), HasSubstr("append the others, or Cancel"));
  AppendRightly(0);
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(0, busy, Zeros(2), Zeros(2)); }), HasSubstr("layer 1 is next"));
  AppendRightly(1);
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(1, busy, Zeros(2), Zeros(2)); }), HasSubstr("all have been appended"));
}

TEST_F(CacheErrorsTest, ShapesAndTypes) {
  for (const TensorView& bad : {Zeros(1), Zeros(3), Zeros(2, 2), Zeros(2, 1, 64), Zeros(2, 0)}) {
    EXPECT_THAT(ErrorOf([&] { c.cache.Append(0, busy, bad, Zeros(2)); }), HasSubstr("it must be [2, 1, 32]"));
    EXPECT_THAT(ErrorOf([&] { c.cache.Append(0, busy, Zeros(2), bad); }), HasSubstr("it must be [2, 1, 32]"));
  }
  EXPECT_THAT(ErrorOf([&] { c.cache.Append(0, busy, Zeros(2, 1, 32, Dtype{9}), Zeros(2)); }),
              HasSubstr("f32, f16 and bf16 are possible"));
  EXPECT_THAT(ErrorOf([&] {
                c.cache.Append(0, busy, {nullptr, Dtype::kF32, 2, 1, 32}, Zeros(2));
              }),
              HasSubstr("null pointer"));
  AppendRightly(0);
  EXPECT_THAT(ErrorOf([&] {
                c.cache.Attend(0, busy, Zeros(2, 0), {zeros.data(), Dtype::kF32, 2, 0, 32});
              }),
              HasSubstr("kv heads is needed"));
  EXPECT_THAT(ErrorOf([&] {
                c.cache.Attend(0, busy, Zeros(2, 3), {zeros.data(), Dtype::kF32, 2, 2, 32});
              }),
              HasSubstr("out is [2, 2, 32]"));
  EXPECT_THAT(ErrorOf([&] { c.cache.AddQueries(0, busy, Zeros(3)); }), HasSubstr("it must be [2, 1, 32]"));
}

TEST_F(CacheErrorsTest, LengthsAndPages) {
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Begin(idle, 0); }), HasSubstr("1 to 1280 fit"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Begin(idle, 10 * P + 1); }), HasSubstr("Cut a long prompt"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Begin(idle, std::numeric_limits<int64_t>::max()); }),
              HasSubstr("Cut a long prompt"));
  EXPECT_THAT(ErrorOf([&] { c.cache.RollBack(idle, P + 1); }), HasSubstr("128 of its 512 tokens are not sealed"));
  EXPECT_THAT(ErrorOf([&] { c.cache.RollBack(idle, -1); }), HasSubstr("Truncate drops more"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Truncate(idle, 4 * P + 1); }), HasSubstr("0 to 512 are possible"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.Truncate(idle, -1); }), HasSubstr("0 to 512 are possible"));
  EXPECT_THAT(ErrorOf([&] { c.cache.Read(idle, 0, Side::kKey, 5, 4, nullptr); }), HasSubstr("tokens 0 to 512"));
  EXPECT_THAT(ErrorOf([&] { c.cache.Read(idle, 0, Side::kKey, 0, 4 * P + 1, nullptr); }), HasSubstr("tokens 0 to 512"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.SealedPage(idle, 0, Side::kKey, 4); }), HasSubstr("it has 4 pages"));
  EXPECT_THAT(ErrorOf([&] { (void)c.cache.layout(2, Side::kKey); }), HasSubstr("layers 0 to 1"));
}

TEST(CacheOptionsTest, ImpossibleOptionsAreRefused) {
  const CacheOptions good = ToyCache::Options("kivi", 4, 4, 2, {1, 32});
  auto with = [&](const std::function<void(CacheOptions&)>& change) {
    CacheOptions o = good;
    change(o);
    EXPECT_EQ(ErrorOf([&] { PlanCache(o); }), ErrorOf([&] { Cache cache(o); }));
    return ErrorOf([&] { Cache cache(o); });
  };
  EXPECT_EQ(with([](CacheOptions&) {}), "(no error)");
  EXPECT_THAT(with([](CacheOptions& o) { o.num_layers = 0; }), HasSubstr("1 to 4096 layers"));
  EXPECT_THAT(with([](CacheOptions& o) { o.num_layers = 1 << 30; }), HasSubstr("1 to 4096 layers"));
  EXPECT_THAT(with([](CacheOptions& o) { o.shape.num_kv_heads = 0; }), HasSubstr("num_kv_heads"));
  EXPECT_THAT(with([](CacheOptions& o) { o.shape.head_dim = 48; }), HasSubstr("head_dim"));
  EXPECT_THAT(with([](CacheOptions& o) { o.f16_pages = 0; }), HasSubstr("set max_tokens"));
  EXPECT_THAT(with([](CacheOptions& o) { o.sealed_pages = 0; }), HasSubstr("set sealed_pages, or max_tokens"));
  EXPECT_THAT(with([](CacheOptions& o) { o.max_tokens = -1; }), HasSubstr("negative"));
  EXPECT_THAT(with([](CacheOptions& o) { o.max_sequences = 0; }), HasSubstr("at least 1"));
  EXPECT_THAT(with([](CacheOptions& o) { o.max_new_tokens = 0; }), HasSubstr("at least 1"));
  EXPECT_THAT(with([](CacheOptions& o) { o.query_stride = 0; }), HasSubstr("1 takes every query"));
  EXPECT_THAT(with([](CacheOptions& o) { o.recipe = ParseRecipe("kivi;1-2=f16"); }),
              HasSubstr("the cache has layers 0 to 1"));
  EXPECT_THAT(with([](CacheOptions& o) { o.recipe.residual_tokens = 100; }), HasSubstr("residual"));
  EXPECT_THAT(with([](CacheOptions& o) { o.sealed_pages = std::numeric_limits<int64_t>::max(); }),
              HasSubstr("too many"));
  EXPECT_THAT(with([](CacheOptions& o) {
                o.sealed_pages = o.f16_pages = 0;
                o.max_tokens = std::numeric_limits<int64_t>::max();
                o.max_sequences = std::numeric_limits<int>::max();
                o.max_new_tokens = std::numeric_limits<int64_t>::max();
              }),
              HasSubstr("too many"));
  EXPECT_THAT(with([](CacheOptions& o) {
                o.num_layers = 4096;
                o.shape = {1024, 256};
                o.sealed_pages = o.f16_pages = 1 << 29;
              }),
              HasSubstr("more bytes than can be counted"));
}

}  // namespace
}  // namespace kvrazor::test

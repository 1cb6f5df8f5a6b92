// A cache on the toy backend that is fed with numbered tokens.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "kvrazor/cache.h"
#include "tests/cache/cache_model.h"

namespace kvrazor::test {

inline const ToyBackend& Toy() {
  static const ToyBackend backend;
  return backend;
}

struct ToyCache {
  explicit ToyCache(const std::string& recipe, int64_t sealed_pages = 40, int64_t f16_pages = 40, int num_layers = 2,
                    HeadShape shape = {1, 32}, const Backend& backend = Toy())
      : options(Options(recipe, sealed_pages, f16_pages, num_layers, shape, backend)),
        cache(options),
        model(options, sealed_pages, f16_pages) {}

  static CacheOptions Options(const std::string& recipe, int64_t sealed_pages, int64_t f16_pages, int num_layers,
                              HeadShape shape, const Backend& backend = Toy()) {
    CacheOptions o;
    o.num_layers = num_layers;
    o.shape = shape;
    o.recipe = ParseRecipe(recipe);
    o.sealed_pages = o.recipe.is_f16() ? 0 : sealed_pages;
    o.f16_pages = f16_pages;
    o.backend = &backend;
    return o;
  }

  std::vector<f16_bits> Rows(uint64_t first_seed, int64_t count, int layer, Side side) const {
    std::vector<f16_bits> rows(static_cast<size_t>(count * model.row_values));
    for (int64_t i = 0; i < count; ++i)
      model.FillRow({first_seed + static_cast<uint64_t>(i), nullptr}, layer, side, rows.data() + i * model.row_values);
    return rows;
  }

  TensorView View(const std::vector<f16_bits>& rows) const {
    return {rows.data(), Dtype::kF16, static_cast<int64_t>(rows.size()) / model.row_values, options.shape.num_kv_heads,
            options.shape.head_dim};
  }

  /// Begin and all layers, not committed. Token i of the step has the seed first_seed + i.
  Status Start(SequenceId seq, uint64_t first_seed, int64_t count) {
    if (const Status status = cache.Begin(seq, count); status != Status::kOk) return status;
    for (int layer = 0; layer < options.num_layers; ++layer) {
      const std::vector<f16_bits> k = Rows(first_seed, count, layer, Side::kKey),
                                  v = Rows(first_seed, count, layer, Side::kValue);
      cache.Append(layer, seq, View(k), View(v));
    }
    return Status::kOk;
  }

  Status Feed(SequenceId seq, uint64_t first_seed, int64_t count) {
    const Status status = Start(seq, first_seed, count);
    if (status == Status::kOk) cache.Commit(seq);
    return status;
  }

  /// A sequence of `count` tokens with seeds from first_seed on.
  SequenceId Make(uint64_t first_seed, int64_t count) {
    const SequenceId seq = cache.Open();
    if (count > 0) {
      EXPECT_EQ(Feed(seq, first_seed, count), Status::kOk);
    }
    return seq;
  }

  std::vector<float> Read(SequenceId seq, int64_t first, int64_t last, int layer, Side side) const {
    std::vector<float> out(static_cast<size_t>((last - first) * model.row_values),
                           std::numeric_limits<float>::quiet_NaN());
    cache.Read(seq, layer, side, first, last, out.data());
    return out;
  }

  /// Whether tokens [first, last) are bit by bit what tokens with these seeds were given as.
  bool Holds(SequenceId seq, int64_t first, int64_t last, uint64_t first_seed) const {
    for (int slot = 0; slot < options.num_layers * 2; ++slot) {
      std::vector<float> want;
      for (const f16_bits x : Rows(first_seed, last - first, slot / 2, Side{slot % 2})) want.push_back(F32FromF16(x));
      if (Read(seq, first, last, slot / 2, Side{slot % 2}) != want) return false;
    }
    return true;
  }

  /// Whether two sequences (of two caches) have the same sealed bytes and values.
  static bool Same(const ToyCache& a, SequenceId sa, const ToyCache& b, SequenceId sb) {
    const int64_t len = a.cache.kv_len(sa);
    if (len != b.cache.kv_len(sb) || a.cache.sealed_len(sa) != b.cache.sealed_len(sb)) return false;
    for (int slot = 0; slot < a.options.num_layers * 2; ++slot) {
      const int layer = slot / 2;
      const Side side{slot % 2};
      if (a.Read(sa, 0, len, layer, side) != b.Read(sb, 0, len, layer, side)) return false;
      for (int64_t page = 0; page * kPageTokens < len; ++page) {
        if (!std::ranges::equal(a.cache.SealedPage(sa, layer, side, page), b.cache.SealedPage(sb, layer, side, page)))
          return false;
      }
    }
    return true;
  }

  CacheOptions options;
  Cache cache;
  CacheModel model;  // for its rows
};

/// Lengths one around every edge of the first pages.
inline std::vector<int64_t> EdgeLengths(int64_t up_to_pages) {
  std::vector<int64_t> lengths = {0, 1};
  for (int64_t page = 1; page <= up_to_pages; ++page) {
    for (const int64_t d : {-1, 0, 1}) lengths.push_back(page * kPageTokens + d);
  }
  return lengths;
}

}  // namespace kvrazor::test

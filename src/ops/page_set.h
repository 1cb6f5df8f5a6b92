// The tokens that an op reads, page by page: sealed bytes, 16-bit rows, or both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvrazor/layout.h"
#include "src/core/half.h"

namespace kvrazor {

/// One bit for each token of a page.
struct TokenMask {
  std::array<uint64_t, kPageTokens / 64> words{};

  bool Test(int t) const { return (words[t / 64] >> (t % 64)) & 1; }
  void Set(int t) { words[t / 64] |= uint64_t{1} << (t % 64); }
  void Clear(int t) { words[t / 64] &= ~(uint64_t{1} << (t % 64)); }
  bool Any() const { return (words[0] | words[1]) != 0; }
  bool All() const { return (words[0] & words[1]) == ~uint64_t{0}; }
  int Count() const { return __builtin_popcountll(words[0]) + __builtin_popcountll(words[1]); }
  TokenMask& operator|=(const TokenMask& other) {
    for (size_t w = 0; w < words.size(); ++w) words[w] |= other.words[w];
    return *this;
  }
  TokenMask Without(const TokenMask& other) const {
    TokenMask rest = *this;
    for (size_t w = 0; w < words.size(); ++w) rest.words[w] &= ~other.words[w];
    return rest;
  }
  bool operator==(const TokenMask&) const = default;
};
static_assert(kPageTokens == 128, "TokenMask has two words");

/// One side of one page. Either `sealed` or `rows` is set.
struct PageSide {
  const std::byte* sealed = nullptr;  // PageLayout::page_bytes, 64-byte aligned
  const f16_bits* rows = nullptr;     // [num_tokens][num_kv_heads][head_dim] as the model wrote them, not rotated
  /// Tokens of a sealed page that are kept in 16 bits beside it (sinks); their codes mean nothing.
  const f16_bits* exact_rows = nullptr;  // [exact.Count()][num_kv_heads][head_dim], in token order
  TokenMask exact = {};
};

/// One page of a sequence as attention reads it.
struct AttendPage {
  PageSide k;
  PageSide v;
  int num_tokens = 0;     ///< tokens 0 .. num_tokens-1 are read (1 .. 128)
  int64_t first_key = 0;  ///< index of token 0 among the keys (mask column, causal position)
};

/// How the two sides of a layer are stored.
struct LayerFormat {
  PageLayout k;
  PageLayout v;
};

}  // namespace kvrazor

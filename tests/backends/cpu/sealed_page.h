// Pages for the tests of sealing: random rows, a guarded page, and a reader written from the text of kvrazor/layout.h.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "src/codecs/codebook.h"
#include "src/ops/backend.h"

namespace kvrazor::test {

/// Runs `body` on every instruction set that this build has and this machine runs.
inline void OnEveryTarget(const std::function<void()>& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

/// n u / (1 - n u), u = 2^-24 (Higham 2002, section 3.1).
inline double Gamma(double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); }

inline TokenMask FirstTokens(int count) {
  TokenMask mask;
  for (int t = 0; t < count; ++t) mask.Set(t);
  return mask;
}

inline PageLayout Layout(const std::string& recipe_text, Side side, HeadShape shape) {
  const Recipe recipe = ParseRecipe(recipe_text);
  return MakePageLayout(side == Side::kKey ? recipe.k : recipe.v, side, shape);
}

/// f16 rows of a page, [128][num_kv_heads][head_dim].
class Rows {
 public:
  explicit Rows(HeadShape shape)
      : shape_(shape), bits_(static_cast<size_t>(kPageTokens) * shape.num_kv_heads * shape.head_dim) {}

  static Rows Normal(HeadShape shape, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Rows rows(shape);
    for (f16_bits& x : rows.bits_) x = F16FromF32(normal(random));
    return rows;
  }
  /// Channels with means of their own, tokens with norms of their own: what keys look like.
  static Rows KeyLike(HeadShape shape, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> mean(static_cast<size_t>(shape.num_kv_heads * shape.head_dim));
    for (float& m : mean) m = 2 * normal(random);
    Rows rows(shape);
    for (int t = 0; t < kPageTokens; ++t) {
      const float norm = std::exp(0.3f * normal(random));
      for (size_t i = 0; i < mean.size(); ++i)
        rows.bits_[t * mean.size() + i] = F16FromF32(norm * (mean[i] + normal(random)));
    }
    return rows;
  }

  void Set(int t, int h, int c, float x) { bits_[Index(t, h, c)] = F16FromF32(x); }
  void SetBits(int t, int h, int c, f16_bits x) { bits_[Index(t, h, c)] = x; }
  float operator()(int t, int h, int c) const { return F32FromF16(bits_[Index(t, h, c)]); }
  const f16_bits* data() const { return bits_.data(); }
  HeadShape shape() const { return shape_; }

  /// One head of one token in float64, H x if asked.
  std::vector<double> Head(int t, int h, bool rotate) const;

  /// The rows of the tokens in `mask`, as PageSide::exact_rows has them.
  std::vector<f16_bits> Only(const TokenMask& mask) const {
    std::vector<f16_bits> rows;
    const size_t n = static_cast<size_t>(shape_.num_kv_heads) * shape_.head_dim;
    for (int t = 0; t < kPageTokens; ++t) {
      if (mask.Test(t)) rows.insert(rows.end(), bits_.begin() + t * n, bits_.begin() + (t + 1) * n);
    }
    return rows;
  }

 private:
  size_t Index(int t, int h, int c) const {
    return (static_cast<size_t>(t) * shape_.num_kv_heads + h) * shape_.head_dim + c;
  }
  HeadShape shape_;
  std::vector<f16_bits> bits_;
};

/// H x from the definition: H_ij = (-1)^popcount(i & j) / sqrt(n).
inline std::vector<double> Rotated(const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += std::popcount(i & j) % 2 ? -x[j] : x[j];
    y[i] /= std::sqrt(static_cast<double>(x.size()));
  }
  return y;
}

inline std::vector<double> Rows::Head(int t, int h, bool rotate) const {
  std::vector<double> x;
  for (int c = 0; c < shape_.head_dim; ++c) x.push_back((*this)(t, h, c));
  return rotate ? Rotated(x) : x;
}

/// A sealed page between guard bytes; what it held before sealing is `fill`.
class SealedPage {
 public:
  SealedPage(const PageLayout& layout, const Rows& rows, const TokenMask& exact = {},
             const SecondMoment* moment = nullptr, uint8_t fill = 0xa5)
      : layout_(layout), memory_(hwy::AllocateAligned<std::byte>(static_cast<size_t>(layout.page_bytes + 2 * kGuard))) {
    std::memset(memory_.get(), fill, static_cast<size_t>(layout.page_bytes + 2 * kGuard));
    CpuBackend().Seal(layout, rows.data(), exact, moment, memory_.get() + kGuard);
    for (int i = 0; i < kGuard; ++i) {
      EXPECT_EQ(memory_[i], std::byte{fill}) << "guard before the page";
      EXPECT_EQ(memory_[layout.page_bytes + kGuard + i], std::byte{fill}) << "guard after the page";
    }
  }

  const std::byte* data() const { return memory_.get() + kGuard; }
  std::vector<std::byte> Bytes() const { return {data(), data() + layout_.page_bytes}; }
  const PageLayout& layout() const { return layout_; }

  template <typename T>
  T Get(int64_t at, int64_t index) const {
    T x;
    std::memcpy(&x, data() + at + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return x;
  }
  int64_t HeadAt(int h) const { return layout_.heads_at + h * layout_.head_bytes; }

  int Code(int h, int t, int c) const {
    const bool key = layout_.side == Side::kKey;
    const int lane = key ? t : c;
    const int k = key ? c : t;
    const auto field = [&](int64_t at, int bits) {
      const int per_row = 32 / bits;
      const int64_t row = int64_t{lane / 16} * (layout_.num_k() / per_row) + k / per_row;
      const uint8_t byte = Get<uint8_t>(HeadAt(h) + at + row * 64 + (lane % 16) * 4 + (k % per_row) % 4, 0);
      return (byte >> (bits * ((k % per_row) / 4))) & ((1 << bits) - 1);
    };
    if (layout_.recipe.bits == 3) return field(layout_.codes_at, 2) + 4 * field(layout_.high_codes_at, 1);
    return field(layout_.codes_at, layout_.recipe.bits);
  }
  double Level(int h, int t, int c) const { return Code(h, t, c) - 0.5 * ((1 << layout_.recipe.bits) - 1); }

  double AffineScale(int h, int t, int c) const {
    return F32FromF16(Get<f16_bits>(HeadAt(h) + layout_.scale_at, Group(t, c)));
  }
  double AffineOffset(int h, int t, int c) const {
    return F32FromF16(Get<f16_bits>(HeadAt(h) + layout_.offset_at, Group(t, c)));
  }
  double TokenScale(int t) const {
    return layout_.token_scale_at < 0 ? 1.0 : F32FromF16(Get<f16_bits>(layout_.token_scale_at, t));
  }
  double Mean(int h, int c) const {
    return double{Get<float>(layout_.head_scalars_at, 2 * h)} * Get<int16_t>(HeadAt(h) + layout_.mean_at, c);
  }
  /// s' of a razor key.
  double KeyScale(int h, int t) const {
    return DecodeE3M5(Get<uint8_t>(HeadAt(h) + layout_.scale_at, t), Get<float>(layout_.head_scalars_at, 2 * h + 1));
  }
  double Norm(int h, int t) const { return DecodeE5M3(Get<uint8_t>(HeadAt(h) + layout_.norm_at, t)); }
  double ValueScale(int h, int c) const { return DecodeE5M3(Get<uint8_t>(HeadAt(h) + layout_.scale_at, c)); }
  double Centre(int h, int c) const { return Get<int8_t>(HeadAt(h) + layout_.centre_at, c) * ValueScale(h, c) / 8; }

  /// The stored value, still rotated, and the sum of the absolute terms it is made of.
  struct Stored {
    double value;
    double magnitude;
  };
  Stored Read(int h, int t, int c) const {
    switch (layout_.recipe.codec) {
      case Codec::kF16: break;
      case Codec::kAffine:
        return Sum(TokenScale(t) * AffineScale(h, t, c) * Code(h, t, c), TokenScale(t) * AffineOffset(h, t, c));
      case Codec::kCodebook: {
        const Codebook& book = GaussianCodebook(layout_.recipe.bits);
        const double norm = F32FromF16(Get<f16_bits>(HeadAt(h) + layout_.norm_at, t));
        return Sum(norm * book.steps[static_cast<size_t>(Code(h, t, c))], -norm * book.middle);
      }
      case Codec::kRazorKey: return Sum(Mean(h, c), KeyScale(h, t) * Level(h, t, c));
      case Codec::kRazorValue:
        return Sum(Norm(h, t) * Centre(h, c),
                   Norm(h, t) * ValueScale(h, c) * (Code(h, t, c) + 0.5 * ((1 << layout_.recipe.bits) - 1)),
                   -Norm(h, t) * ValueScale(h, c) * ((1 << layout_.recipe.bits) - 1));
    }
    return {};
  }

  /// One head of one token as the model would see it.
  std::vector<double> Head(int t, int h) const {
    std::vector<double> x;
    for (int c = 0; c < layout_.shape.head_dim; ++c) x.push_back(Read(h, t, c).value);
    return layout_.recipe.rotate ? Rotated(x) : x;
  }

 private:
  static constexpr int kGuard = 64;

  template <typename... Term>
  static Stored Sum(Term... terms) {
    return {(terms + ...), (std::abs(terms) + ...)};
  }
  int64_t Group(int t, int c) const {
    const int size = layout_.recipe.group_size;
    return layout_.recipe.axis == Axis::kPerChannel ? int64_t{t / size} * layout_.shape.head_dim + c
                                                    : int64_t{c / size} * kPageTokens + t;
  }

  PageLayout layout_;
  hwy::AlignedFreeUniquePtr<std::byte[]> memory_;
};

/// Mean squared difference of all heads of the tokens that are not exact.
inline double MeanSquaredError(const SealedPage& page, const Rows& rows, const TokenMask& exact = {}) {
  double sum = 0;
  int64_t count = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    if (exact.Test(t)) continue;
    for (int h = 0; h < rows.shape().num_kv_heads; ++h) {
      const std::vector<double> want = rows.Head(t, h, page.layout().recipe.rotate);
      for (int c = 0; c < rows.shape().head_dim; ++c, ++count) {
        const double e = page.Read(h, t, c).value - want[c];
        sum += e * e;
      }
    }
  }
  return sum / static_cast<double>(count);
}

/// Queries with few strong directions, as models have them; [num_tokens][num_qo_heads][head_dim].
inline std::vector<float> CorrelatedQueries(int num_tokens, int num_qo_heads, int head_dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  constexpr int kDirections = 8;
  std::vector<float> direction(static_cast<size_t>(kDirections * head_dim));
  for (float& x : direction) x = normal(random);
  std::vector<float> q(static_cast<size_t>(num_tokens) * num_qo_heads * head_dim);
  for (size_t row = 0; row < q.size(); row += static_cast<size_t>(head_dim)) {
    for (int k = 0; k < kDirections; ++k) {
      const float along = normal(random) * 4 / static_cast<float>(k + 1);
      for (int c = 0; c < head_dim; ++c) q[row + c] += along * direction[k * head_dim + c];
    }
    for (int c = 0; c < head_dim; ++c) q[row + c] += normal(random);
  }
  return q;
}

}  // namespace kvrazor::test

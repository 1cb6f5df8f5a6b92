// Random attention problems for tests and benchmarks: pages with random codes and parameters, queries, masks, outputs with guards.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "src/core/aligned_bytes.h"
#include "src/ops/attend.h"

namespace kvrazor::test {

enum class MaskKind { kCausal, kZero, kRandom, kHidden, kCausalMask };

struct AttendCaseOptions {
  SideRecipe k;
  SideRecipe v;
  HeadShape k_shape;
  HeadShape v_shape;
  int gqa_ratio = 1;
  int qo_len = 1;
  int kv_len = 1;
  int f16_tail = 128;    ///< last tokens of keys kept as 16-bit rows, beside those of the last, partial page
  int v_f16_tail = 128;  ///< likewise of values: pages with sides in different states if they differ
  int exact_tokens = 0;  ///< of the first page, if it is sealed
  MaskKind mask = MaskKind::kCausal;
  bool alibi = false;
  bool sinks = false;
  float softcap = 0;
  float logit_size = 1;  ///< factor on the queries: larger is more peaked
  uint64_t seed = 1;
};

class AttendCase {
 public:
  explicit AttendCase(const AttendCaseOptions& o) : o_(o), random_(o.seed) {
    format_.k = MakePageLayout(o.k, Side::kKey, o.k_shape);
    format_.v = MakePageLayout(o.v, Side::kValue, o.v_shape);
    for (int first = 0; first < o.kv_len; first += kPageTokens) AddPage(first);
    std::shuffle(pages_.begin(), pages_.end(), random_);
    const int heads = num_qo_heads();
    q_.resize(static_cast<size_t>(o.qo_len) * heads * o.k_shape.head_dim);
    for (float& x : q_) x = o.logit_size * Normal();
    out_.assign(static_cast<size_t>(o.qo_len) * heads * o.v_shape.head_dim + 2 * kGuard,
                std::numeric_limits<float>::quiet_NaN());
    lse_.assign(static_cast<size_t>(o.qo_len) * heads + 2 * kGuard, std::numeric_limits<float>::quiet_NaN());
    if (o.mask != MaskKind::kCausal) FillMask();
    for (int h = 0; h < heads; ++h)
      slopes_.push_back(std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(heads)));
    for (int h = 0; h < heads; ++h) sinks_.push_back(2 * Normal());
  }

  int num_qo_heads() const { return o_.k_shape.num_kv_heads * o_.gqa_ratio; }

  AttendArgs args() {
    AttendArgs a;
    a.format = &format_;
    a.pages = pages_;
    a.num_qo_heads = num_qo_heads();
    a.qo_len = o_.qo_len;
    a.softmax_scale = 1.0f / std::sqrt(static_cast<float>(o_.k_shape.head_dim));
    a.logit_softcap = o_.softcap;
    a.q = {q_.data(), int64_t{a.num_qo_heads} * o_.k_shape.head_dim, o_.k_shape.head_dim};
    a.out = {out_.data() + kGuard, int64_t{a.num_qo_heads} * o_.v_shape.head_dim, o_.v_shape.head_dim};
    a.lse = lse_.data() + kGuard;
    if (o_.mask != MaskKind::kCausal) {
      a.mask = mask_.data();
      a.mask_stride = mask_stride_;
    }
    a.causal_base = o_.kv_len - o_.qo_len;
    if (o_.alibi) a.alibi_slopes = slopes_.data();
    if (o_.sinks) a.sink_logits = sinks_.data();
    return a;
  }

  void ClearOutputs() {
    std::fill(out_.begin(), out_.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(lse_.begin(), lse_.end(), std::numeric_limits<float>::quiet_NaN());
  }
  bool GuardsIntact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (!std::isnan(out_[i]) || !std::isnan(out_[out_.size() - 1 - i])) return false;
      if (!std::isnan(lse_[i]) || !std::isnan(lse_[lse_.size() - 1 - i])) return false;
    }
    return true;
  }
  const LayerFormat& format() const { return format_; }

 private:
  static constexpr size_t kGuard = 16;

  float Normal() { return std::normal_distribution<float>()(random_); }
  float Uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_); }

  void AddPage(int first) {
    AttendPage page;
    page.first_key = first;
    page.num_tokens = std::min(kPageTokens, o_.kv_len - first);
    page.k = MakeSide(format_.k, page, o_.kv_len - o_.f16_tail);
    page.v = MakeSide(format_.v, page, o_.kv_len - o_.v_f16_tail);
    pages_.push_back(page);
  }

  PageSide MakeSide(const PageLayout& layout, const AttendPage& page, int sealed_end) {
    PageSide side;
    const bool sealed =
        layout.page_bytes > 0 && page.num_tokens == kPageTokens && page.first_key + kPageTokens <= sealed_end;
    if (!sealed) {
      side.rows = Rows(layout, page.num_tokens);
      return side;
    }
    side.sealed = SealedBytes(layout);
    if (page.first_key == 0 && o_.exact_tokens > 0) {
      for (int i = 0; i < o_.exact_tokens; ++i)
        side.exact.Set(i < 2 ? i : kPageTokens - 1 - 3 * i);  // ends and middle of the page
      side.exact_rows = Rows(layout, o_.exact_tokens);
    }
    return side;
  }

  const f16_bits* Rows(const PageLayout& layout, int tokens) {
    memory_.emplace_back(tokens * layout.row_values() * 2);
    auto* rows = reinterpret_cast<f16_bits*>(memory_.back().get());
    if (normals_.empty()) {
      for (int i = 0; i < 8191; ++i) normals_.push_back(F16FromF32(Normal()));  // prime: repeats line up with no row
    }
    for (int64_t i = 0; i < tokens * layout.row_values(); ++i) rows[i] = normals_[normals_at_++ % normals_.size()];
    return rows;
  }

  const std::byte* SealedBytes(const PageLayout& l) {
    memory_.emplace_back(l.page_bytes);
    std::byte* page = memory_.back().get();
    for (int64_t i = 0; i < l.page_bytes; i += 8) {
      const uint64_t bits = random_();
      std::memcpy(page + i, &bits, 8);  // pages are multiples of 64 bytes
    }
    const auto put_f16 = [](std::byte* at, int64_t i, float x) {
      const f16_bits h = F16FromF32(x);
      std::memcpy(at + 2 * i, &h, 2);
    };
    if (l.token_scale_at >= 0) {
      for (int t = 0; t < kPageTokens; ++t) put_f16(page + l.token_scale_at, t, Uniform(0.3f, 3.0f));
    }
    for (int h = 0; h < l.shape.num_kv_heads; ++h) {
      std::byte* block = page + l.heads_at + h * l.head_bytes;
      switch (l.recipe.codec) {
        case Codec::kF16: break;
        case Codec::kAffine:
          for (int64_t i = 0; i < kPageTokens * l.shape.head_dim / l.recipe.group_size; ++i) {
            put_f16(block + l.scale_at, i, Uniform(0.02f, 0.8f));
            put_f16(block + l.offset_at, i, Uniform(-1.5f, 0.3f));
          }
          break;
        case Codec::kCodebook:
          for (int t = 0; t < kPageTokens; ++t) put_f16(block + l.norm_at, t, Uniform(0.02f, 0.2f));
          break;
        case Codec::kRazorKey: {
          const float scalars[2] = {1.0f / 16384, 2.0f};
          std::memcpy(page + l.head_scalars_at + 8 * h, scalars, 8);
          for (int t = 0; l.mean_factor_at >= 0 && t < kPageTokens; ++t)
            put_f16(block + l.mean_factor_at, t, Uniform(-0.5f, 1.5f));
          break;  // means and scales: any bytes
        }
        case Codec::kRazorValue:
          for (int t = 0; t < kPageTokens; ++t)
            block[l.norm_at + t] = static_cast<std::byte>((13 << 3) + random_() % 32);
          for (int c = 0; c < kPageTokens / l.tokens_per_group() * l.shape.head_dim; ++c)
            block[l.scale_at + c] = static_cast<std::byte>((11 << 3) + random_() % 24);
          break;
      }
    }
    return page;
  }

  void FillMask() {
    mask_stride_ = o_.kv_len + 5;
    mask_.assign(static_cast<size_t>(mask_stride_) * o_.qo_len, 0);
    for (int i = 0; i < o_.qo_len; ++i) {
      for (int j = 0; j < o_.kv_len; ++j) {
        f16_bits& m = mask_[i * mask_stride_ + j];
        const bool future = j > o_.kv_len - o_.qo_len + i;
        switch (o_.mask) {
          case MaskKind::kCausal: break;
          case MaskKind::kZero: m = j % 3 ? 0 : 0x8000; break;
          case MaskKind::kHidden: m = 0xfc00; break;
          case MaskKind::kCausalMask: m = future ? 0xfc00 : 0; break;
          case MaskKind::kRandom:  // hidden stretches, distances as for ALiBi; the first row sees nothing
            m = i == 0 || (j / 50 + i) % 4 == 0 || random_() % 5 == 0
                    ? 0xfc00
                    : F16FromF32(static_cast<float>(j - o_.kv_len) / 64);
            break;
        }
      }
    }
  }

  AttendCaseOptions o_;
  std::mt19937_64 random_;
  LayerFormat format_;
  std::vector<AlignedBytes> memory_;
  std::vector<AttendPage> pages_;
  std::vector<f16_bits> normals_;
  size_t normals_at_ = 0;
  std::vector<float> q_, out_, lse_, slopes_, sinks_;
  std::vector<f16_bits> mask_;
  int64_t mask_stride_ = 0;
};

}  // namespace kvrazor::test

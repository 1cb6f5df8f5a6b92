// PageLayout as plain numbers, whole CPU pages byte by byte, and the choice of a word converter: what the host and the device
// conversions share.
#pragma once

#include <cstdint>

#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/page_words.h"

namespace kvrazor::cuda {

inline CpuSide MakeCpuSide(const PageLayout& p) {
  return {.page_bytes = p.page_bytes,
          .token_scale_at = p.token_scale_at,
          .head_scalars_at = p.head_scalars_at,
          .heads_at = p.heads_at,
          .head_bytes = p.head_bytes,
          .codes_at = p.codes_at,
          .high_codes_at = p.high_codes_at,
          .scale_at = p.scale_at,
          .offset_at = p.offset_at,
          .mean_at = p.mean_at,
          .norm_at = p.norm_at,
          .mean_factor_at = p.mean_factor_at,
          .centre_at = p.centre_at,
          .group_size = p.recipe.group_size};
}

/// Calls fn(Words{}) with the converter of this format; Words::Page is its page.
template <class Fn>
void DispatchWords(const PackedFormat& f, Fn fn) {
  const PageForm form = f.form();
  const auto with_dim = [&]<int kDim>() {
    if (form.kind == PageKind::kAffine) {
      const auto with_values = [&]<int kKeyBits>() {
        form.value_bits == 2 ? fn(AffineWords<kDim, kKeyBits, 2>{}) : fn(AffineWords<kDim, kKeyBits, 4>{});
      };
      form.key_bits == 2 ? with_values.template operator()<2>() : with_values.template operator()<4>();
      return;
    }
    const auto with_keys = [&]<int kKeyBits, bool kRankOne>() {
      form.value_groups == 1 ? fn(RazorWords<kDim, kKeyBits, kRankOne, 1>{})
                             : fn(RazorWords<kDim, kKeyBits, kRankOne, 4>{});
    };
    if (form.key_bits == 2) {
      form.rank_one_mean ? with_keys.template operator()<2, true>() : with_keys.template operator()<2, false>();
    } else {
      form.rank_one_mean ? with_keys.template operator()<3, true>() : with_keys.template operator()<3, false>();
    }
  };
  form.head_dim == 64 ? with_dim.template operator()<64>() : with_dim.template operator()<128>();
}

/// Byte `at` of what stands in front of the heads of a CPU page.
template <int kDim, int kKeyBits, bool kRankOne, int kValueGroups>
KVRAZOR_HOST_DEVICE uint8_t UnpackPageHead(RazorWords<kDim, kKeyBits, kRankOne, kValueGroups>, int64_t at,
                                           const CpuSide& s, int num_heads, int64_t head_stride,
                                           const uint8_t* packed) {
  using Words = RazorWords<kDim, kKeyBits, kRankOne, kValueGroups>;
  if (s.head_scalars_at < 0 || at < s.head_scalars_at || at >= s.head_scalars_at + 8 * num_heads) return 0;
  const int64_t x = at - s.head_scalars_at;
  return static_cast<uint8_t>(Words::UnpackScalar(static_cast<int>(x / 4 % 2), packed + x / 8 * head_stride) >>
                              (8 * (x % 4)));
}
template <int kDim, int kKeyBits, int kValueBits>
KVRAZOR_HOST_DEVICE uint8_t UnpackPageHead(AffineWords<kDim, kKeyBits, kValueBits>, int64_t at, const CpuSide& s, int,
                                           int64_t, const uint8_t* packed) {
  using Words = AffineWords<kDim, kKeyBits, kValueBits>;
  if (s.token_scale_at < 0 || at < s.token_scale_at || at >= s.token_scale_at + 2 * kTokens) return 0;
  const int64_t x = at - s.token_scale_at;
  return static_cast<uint8_t>(Words::UnpackTokenNorm(static_cast<int>(x / 2), packed) >> (8 * (x % 2)));
}

template <class Words>
KVRAZOR_HOST_DEVICE uint8_t UnpackKeyPageByte(int64_t at, const CpuSide& k, int num_heads, int64_t head_stride,
                                              const uint8_t* packed) {
  if (at < k.heads_at) return UnpackPageHead(Words{}, at, k, num_heads, head_stride, packed);
  const int64_t head = (at - k.heads_at) / k.head_bytes;
  if (head >= num_heads) return 0;
  return Words::UnpackKey((at - k.heads_at) % k.head_bytes, k, packed + head * head_stride);
}
template <class Words>
KVRAZOR_HOST_DEVICE uint8_t UnpackValuePageByte(int64_t at, const CpuSide& v, int num_heads, int64_t head_stride,
                                                const uint8_t* packed) {
  if (at < v.heads_at) return 0;
  const int64_t head = (at - v.heads_at) / v.head_bytes;
  if (head >= num_heads) return 0;
  return Words::UnpackValue((at - v.heads_at) % v.head_bytes, v, packed + head * head_stride);
}

}  // namespace kvrazor::cuda

// Where every byte of a page lies on the GPU. Unlike the CPU's pages (include/kvrazor/layout.h), keys and values of one kv head
// lie together, in the order in which the tensor cores take them, so that one bulk copy brings all that a warp needs:
//
//   packed page   [num_kv_heads][kBytes]             sealed, RazorPage or AffinePage below
//   row page      [num_kv_heads][2: k, v][128][D]    f16, as the model wrote them; 16-byte chunks swizzled, see RowByte
//   sink rows     [num_kv_heads][2: k, v][16][D]     f16, likewise: the first tokens of a sequence, kept exact
//
// docs/cuda.md draws the same and says how it is read. Notation: a warp's lane = 4 g + q; D = head_dim; u32 words.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KVRAZOR_HOST_DEVICE __host__ __device__
#else
#define KVRAZOR_HOST_DEVICE
#endif

namespace kvrazor::cuda {

inline constexpr int kTokens = 128;  // of a page
inline constexpr int kRowUnit = 16;  // 16-bit tokens that a warp takes at once
inline constexpr int kMaxSinkTokens = kRowUnit;

KVRAZOR_HOST_DEVICE constexpr int RoundUp(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Sealed page of razor: keys of 2 or 3 bits with a page mean, each token's own multiple of it with `kRankOne`; values of 2 bits with
/// parameters of the whole page (kValueGroups 1) or of every 32 tokens (4). Everything is a permutation of the CPU page's bits, except that
/// the centre is stored plus 128 and the mean as two signed bytes.
template <int kDim, int kKeyBits = 2, bool kRankOne = false, int kValueGroups = 1>
struct RazorPage {
  static_assert(kDim % 64 == 0 && (kKeyBits == 2 || kKeyBits == 3) && (kValueGroups == 1 || kValueGroups == 4));
  static constexpr int kGroupTokens = kTokens / kValueGroups;
  // 2 bits: word [D/32 kt][2 tg][32 lanes][4 r]; byte e, bits [2j, 2j+2): token 16 (4 tg + j) + g + 8 (r & 1),
  //         channel 32 kt + 16 (r >> 1) + 4 q + e
  // 3 bits: word [D/32 kt][3 w][32 lanes][4 r]; byte e holds bits of the codes of the 8 tokens 16 i + g + 8 (r & 1), same channel:
  //         w 0: i 0 | i 1 | i 6 bits 1, 2      w 1: i 2 | i 3 | i 6 bit 0, i 7 bit 0      w 2: i 4 | i 5 | i 7 bits 1, 2
  //         so six are masked out where they stand, times 1 or 8, and two joined of two words, times 32
  static constexpr int kKeyCodes = 0;
  // word [4 kt][D/64 dg][32 lanes][4 r]; byte e, bits [2j, 2j+2): channel 16 (4 dg + j) + g + 8 (r & 1),
  // token 32 kt + 16 (r >> 1) + 2 q + (e >> 1) + 8 (e & 1)
  static constexpr int kValueCodes = kKeyCodes + kTokens * kDim * kKeyBits / 8;
  // word [D/32 kt][4 q][4: high 0, low 0, high 1, low 1]; byte e: channel 32 kt + 16 half + 4 q + e; mean = 256 high + 128 + low
  static constexpr int kMean = kValueCodes + kTokens * kDim / 4;
  static constexpr int kTokenScale = kMean + 2 * kDim;  // u8 e3m5 [8 g][16 i]: token 16 (i / 2) + g + 8 (i % 2)
  static constexpr int kNorm = kTokenScale + kTokens;   // u8 e5m3, same order
  static constexpr int kMeanFactor = kNorm + kTokens;   // f16, same order; only with kRankOne
  static constexpr int kChannelScale =
      kMeanFactor + (kRankOne ? 2 * kTokens : 0);  // u8 e5m3 [groups][8 g][D/8 i]: channel 16 (i / 2) + g + 8 (i % 2)
  static constexpr int kCentre = kChannelScale + kValueGroups * kDim;  // u8, same order
  static constexpr int kHeader =
      kCentre + kValueGroups * kDim;  // f32 token_scale_base, f32 mean_scale, u32 any_zero_scale, u32 0
  static constexpr int kBytes = RoundUp(kHeader + 16, 128);

  /// Where a bit of the code of a key (token, channel) lies: 8 * byte + bit of it.
  KVRAZOR_HOST_DEVICE static constexpr int KeyBit(int token, int channel, int bit) {
    const int lane = token % 8 * 4 + channel % 16 / 4, r = token % 16 / 8 + 2 * (channel % 32 / 16), i = token / 16;
    int row = channel / 32 * 2 + i / 4, at = 2 * (i % 4) + bit;
    if constexpr (kKeyBits == 3) {
      const bool split = i >= 6;
      row = channel / 32 * 3 + (!split ? i / 2 : bit == 0 ? 1 : i == 6 ? 0 : 2);
      at = !split ? 3 * (i % 2) + bit : bit == 0 ? i : 5 + bit;
    }
    return 8 * (kKeyCodes + 4 * (row * 128 + lane * 4 + r) + channel % 4) + at;
  }
};
static_assert(RazorPage<128>::kBytes == 9088, "2.22 bits per value; docs/cuda.md quotes it");
static_assert(RazorPage<128, 3, true>::kBytes == 11392, "2.78 bits per value, likewise");

/// Sealed page of the affine codecs (keys per channel, values per token), codes of 2 or 4 bits. Parameters are kept for groups of
/// 32; larger groups repeat theirs.
template <int kDim, int kKeyBits = 2, int kValueBits = 2>
struct AffinePage {
  static_assert(kDim % 64 == 0 && (kKeyBits == 2 || kKeyBits == 4) && (kValueBits == 2 || kValueBits == 4));
  // 2 bits: word [4 p][D/64 quad][32 lanes][4 i]: field f = 4 t + 2 odd + high at bits [2f, 2f+2) and [16+2f, ..) is
  //         token 32 p + 16 t + g + 8 high, channels 16 (4 quad + 2 (i / 2) + odd) + 2 q + 8 (i % 2) and the next
  // 4 bits: word [4 p][D/64 quad][2 t][32 lanes][4 i]: field f = 2 odd + high at bits [4f, 4f+4) and [16+4f, ..), likewise
  static constexpr int kKeyCodes = 0;
  // f16 pairs [2 half][D/16 kt][4 q][4: group 2 half low, high, group 2 half + 1 low, high]; low: channels 16 kt + 2 q and the next,
  // high: 8 further. A group is 32 tokens
  static constexpr int kKeyScale = kKeyCodes + kTokens * kDim * kKeyBits / 8;
  // [2 half][D/16 kt][4 q][4: low of both groups, high of both groups]: operand A of a product of its own
  static constexpr int kKeyOffset = kKeyScale + 8 * kDim;
  // the same with tokens and channels exchanged: [D/32 p][2 quad]...
  static constexpr int kValueCodes = kKeyOffset + 8 * kDim;
  // f16 pairs [D/32 group][4 kt pair][4 q][4: even kt low, high, odd kt low, high]; low: tokens 16 kt + 2 q and the next, high: 8
  // further. A group is 32 channels
  static constexpr int kValueScale = kValueCodes + kTokens * kDim * kValueBits / 8;
  static constexpr int kValueOffset = kValueScale + 8 * kDim;  // [4 kt pair][D/32 group][4 q][4], likewise
  static constexpr int kTokenNorm = kValueOffset + 8 * kDim;   // f16 [8 g][16 i]: token 16 (i / 2) + g + 8 (i % 2)
  static constexpr int kBytes = RoundUp(kTokenNorm + 2 * kTokens, 128);

  /// Byte of the f16 pair of parameters of (group of 32 tokens of keys or channels of values, channels or tokens k and k + 1); k even.
  KVRAZOR_HOST_DEVICE static constexpr int KeyScaleByte(int group, int k) {
    return kKeyScale + 4 * (((group / 2 * (kDim / 16) + k / 16) * 4 + k % 8 / 2) * 4 + group % 2 * 2 + k % 16 / 8);
  }
  KVRAZOR_HOST_DEVICE static constexpr int KeyOffsetByte(int group, int k) {
    return kKeyOffset + 4 * (((group / 2 * (kDim / 16) + k / 16) * 4 + k % 8 / 2) * 4 + k % 16 / 8 * 2 + group % 2);
  }
  KVRAZOR_HOST_DEVICE static constexpr int ValueScaleByte(int group, int k) {
    return kValueScale + 4 * (((group * 4 + k / 32) * 4 + k % 8 / 2) * 4 + k % 32 / 16 * 2 + k % 16 / 8);
  }
  KVRAZOR_HOST_DEVICE static constexpr int ValueOffsetByte(int group, int k) {
    return kValueOffset + 4 * (((k / 32 * (kDim / 32) + group) * 4 + k % 8 / 2) * 4 + k % 32 / 16 * 2 + k % 16 / 8);
  }
};
static_assert(AffinePage<128>::kBytes == 12544, "3.06 bits per value; docs/cuda.md quotes it");
static_assert(AffinePage<128, 4, 4>::kBytes == 20736, "5.06 bits per value, likewise");

/// Byte of (token, channel) in the k or v half of a row page or of sink rows.
template <int kDim>
KVRAZOR_HOST_DEVICE constexpr int RowByte(int token, int channel) {
  return token * 2 * kDim + (((channel / 8) ^ (token & 7)) * 16) + (channel % 8) * 2;
}

/// Page table entries: what is not negative is a packed page, a negative entry e is the row page ~e.
KVRAZOR_HOST_DEVICE constexpr bool IsRowPage(int32_t entry) { return entry < 0; }
KVRAZOR_HOST_DEVICE constexpr int32_t PageIndex(int32_t entry) { return entry < 0 ? ~entry : entry; }

}  // namespace kvrazor::cuda

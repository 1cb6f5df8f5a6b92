// The conversion between the CPU page and the packed page, word by word, as plain functions that the host and the device share.
// Gather* computes one word of the result from the other form; nothing is rounded, so a round trip gives the same bytes.
#pragma once

#include <cstdint>

#include "src/backends/cuda/packed_page.h"

namespace kvrazor::cuda {

/// Byte offsets of include/kvrazor/layout.h, without its types (device code).
struct CpuSide {
  int64_t page_bytes, token_scale_at, head_scalars_at, heads_at, head_bytes, codes_at, high_codes_at, scale_at,
      offset_at, mean_at, norm_at, mean_factor_at, centre_at;
  int group_size;
};

template <class T>
KVRAZOR_HOST_DEVICE inline T LoadAs(const uint8_t* p) {
  T value = 0;
  for (unsigned i = 0; i < sizeof(T); ++i) value |= static_cast<T>(p[i]) << (8 * i);
  return value;
}

/// The codes of a head in a CPU page (include/kvrazor/layout.h): lane = token of keys, channel of values; k = the other one of num_k.
template <int kBits>
struct CpuCodes {
  static constexpr int kRowBits = kBits == 3 ? 2 : kBits;
  static constexpr int kPerRow = 32 / kRowBits;  // of k

  /// Code of (lane, k).
  KVRAZOR_HOST_DEVICE static uint32_t Read(const uint8_t* head, const CpuSide& s, int num_k, int lane, int k) {
    const int row = lane / 16 * (num_k / kPerRow) + k / kPerRow;
    const uint32_t byte = head[s.codes_at + row * 64 + lane % 16 * 4 + k % 4];
    uint32_t code = (byte >> (k % kPerRow / 4 * kRowBits)) & ((1u << kRowBits) - 1);
    if constexpr (kBits == 3) {
      const int high_row = lane / 16 * (num_k / 32) + k / 32;
      code |= ((head[s.high_codes_at + high_row * 64 + lane % 16 * 4 + k % 4] >> (k % 32 / 4)) & 1u) << 2;
    }
    return code;
  }
  /// Whether byte `at` of a head is one of codes, and then that byte, from code_of(lane, k).
  template <class CodeOf>
  KVRAZOR_HOST_DEVICE static bool Write(int64_t at, const CpuSide& s, int num_k, int num_values, CodeOf code_of,
                                        uint8_t* byte) {
    *byte = 0;
    const bool is_high = kBits == 3 && at >= s.high_codes_at && at < s.high_codes_at + num_values / 8;
    if (!is_high && (at < s.codes_at || at >= s.codes_at + num_values * kRowBits / 8)) return false;
    const int x = static_cast<int>(at - (is_high ? s.high_codes_at : s.codes_at));
    const int bits = is_high ? 1 : kRowBits, per_row = 32 / bits;
    const int lane = x / 64 / (num_k / per_row) * 16 + x % 64 / 4;
    for (int j = 0; j < per_row / 4; ++j) {
      const uint32_t code = code_of(lane, x / 64 % (num_k / per_row) * per_row + 4 * j + x % 4);
      *byte |= static_cast<uint8_t>((is_high ? code >> 2 : code & ((1u << kRowBits) - 1)) << (bits * j));
    }
    return true;
  }
};

/// Token or channel at position i of a vector kept as [8 g][n / 8].
KVRAZOR_HOST_DEVICE constexpr int VectorIndex(int i, int n) {
  const int g = i / (n / 8);
  const int j = i % (n / 8);
  return 16 * (j / 2) + g + 8 * (j % 2);
}
KVRAZOR_HOST_DEVICE constexpr int VectorPosition(int x, int n) {
  return (x % 8) * (n / 8) + 2 * (x / 16) + (x % 16) / 8;
}

template <int kDim, int kKeyBits = 2, bool kRankOne = false, int kValueGroups = 1>
struct RazorWords {
  using Page = RazorPage<kDim, kKeyBits, kRankOne, kValueGroups>;
  static constexpr int kNumCodes = kTokens * kDim;

  KVRAZOR_HOST_DEVICE static int ValueByte(int token, int channel, int* shift) {
    const int kt = token / 32, dg = channel / 64, g = channel % 8, q = token % 8 / 2;
    const int r = channel % 16 / 8 + 2 * (token % 32 / 16);
    *shift = 2 * (channel / 16 % 4);
    return Page::kValueCodes + 4 * ((kt * (kDim / 64) + dg) * 128 + (4 * g + q) * 4 + r) + 2 * (token % 2) +
           token % 16 / 8;
  }
  KVRAZOR_HOST_DEVICE static int MeanByte(int channel) {  // of the high byte; the low one lies 4 bytes behind
    return Page::kMean + 4 * (channel / 32 * 16 + channel % 16 / 4 * 4 + 2 * (channel % 32 / 16)) + channel % 4;
  }

  /// Word `w` of the packed page of one head.
  KVRAZOR_HOST_DEVICE static uint32_t Pack(int w, const CpuSide& k, const CpuSide& v, const uint8_t* k_page,
                                           const uint8_t* v_page, int head) {
    const uint8_t* k_head = k_page + k.heads_at + head * k.head_bytes;
    const uint8_t* v_head = v_page + v.heads_at + head * v.head_bytes;
    const int at = 4 * w;
    uint32_t word = 0;
    if (at < Page::kValueCodes) {
      constexpr int kRows = kKeyBits;  // of words, of 32 channels
      const int lane = w / 4 % 32, g = lane / 4, q = lane % 4, r = w % 4, kt = w / 128 / kRows;
      for (int e = 0; e < 4; ++e) {
        const int channel = 32 * kt + 16 * (r >> 1) + 4 * q + e;
        for (int i = 0; i < 8; ++i) {
          const int token = 16 * i + g + 8 * (r & 1);
          const uint32_t code = CpuCodes<kKeyBits>::Read(k_head, k, kDim, token, channel);
          for (int bit = 0; bit < kKeyBits; ++bit) {
            const int to = Page::KeyBit(token, channel, bit);
            if (to / 32 == w) word |= ((code >> bit) & 1u) << (to % 32);
          }
        }
      }
    } else if (at < Page::kMean) {
      const int x = w - Page::kValueCodes / 4;
      const int lane = x / 4 % 32, g = lane / 4, q = lane % 4, r = x % 4, dg = x / 128 % (kDim / 64),
                kt = x / 128 / (kDim / 64);
      for (int e = 0; e < 4; ++e) {
        for (int j = 0; j < 4; ++j) {
          const int token = 32 * kt + 16 * (r >> 1) + 2 * q + (e >> 1) + 8 * (e & 1);
          const int channel = 16 * (4 * dg + j) + g + 8 * (r & 1);
          word |= CpuCodes<2>::Read(v_head, v, kTokens, channel, token) << (8 * e + 2 * j);
        }
      }
    } else if (at < Page::kTokenScale) {
      const int x = w - Page::kMean / 4;
      for (int e = 0; e < 4; ++e) {
        const int channel = x / 16 * 32 + 16 * (x % 4 / 2) + x / 4 % 4 * 4 + e;
        const int mean = static_cast<int16_t>(LoadAs<uint16_t>(k_head + k.mean_at + 2 * channel));
        const int high = mean >> 8;
        const int byte = x % 2 == 0 ? high : mean - 256 * high - 128;
        word |= static_cast<uint32_t>(byte & 255) << (8 * e);
      }
    } else if (at < Page::kHeader) {
      for (int e = 0; e < 4; ++e) {
        const int byte = at + e;
        uint32_t x = 0;
        if (byte < Page::kNorm) {
          x = k_head[k.scale_at + VectorIndex(byte - Page::kTokenScale, kTokens)];
        } else if (byte < Page::kMeanFactor) {
          x = v_head[v.norm_at + VectorIndex(byte - Page::kNorm, kTokens)];
        } else if (byte < Page::kChannelScale) {
          x = k_head[k.mean_factor_at + 2 * VectorIndex((byte - Page::kMeanFactor) / 2, kTokens) + byte % 2];
        } else if (byte < Page::kCentre) {
          x = v_head[v.scale_at + ChannelParameter(byte - Page::kChannelScale, v)];
        } else {
          x = v_head[v.centre_at + ChannelParameter(byte - Page::kCentre, v)] ^ 128u;
        }
        word |= x << (8 * e);
      }
    } else if (at == Page::kHeader) {
      word = LoadAs<uint32_t>(k_page + k.head_scalars_at + 8 * head + 4);
    } else if (at == Page::kHeader + 4) {
      word = LoadAs<uint32_t>(k_page + k.head_scalars_at + 8 * head);
    } else if (at == Page::kHeader + 8) {
      for (int t = 0; t < kTokens; ++t) word |= k_head[k.scale_at + t] == 0;
    }
    return word;
  }

  /// Index in the CPU's [groups][D] of parameter i of a packed page's [kValueGroups][8 g][D/8].
  KVRAZOR_HOST_DEVICE static int ChannelParameter(int i, const CpuSide& v) {
    const int group = i / kDim * Page::kGroupTokens / (v.group_size > 0 ? v.group_size : kTokens);
    return group * kDim + VectorIndex(i % kDim, kDim);
  }
  /// The way back.
  KVRAZOR_HOST_DEVICE static int ChannelPosition(int index, const CpuSide& v) {
    const int group = index / kDim * (v.group_size > 0 ? v.group_size : kTokens) / Page::kGroupTokens;
    return group * kDim + VectorPosition(index % kDim, kDim);
  }

  /// Byte `at` of one head's block in the CPU page of keys.
  KVRAZOR_HOST_DEVICE static uint8_t UnpackKey(int64_t at, const CpuSide& k, const uint8_t* packed) {
    const auto code_of = [packed](int token, int channel) {
      uint32_t code = 0;
      for (int bit = 0; bit < kKeyBits; ++bit) {
        const int from = Page::KeyBit(token, channel, bit);
        code |= ((packed[from / 8] >> (from % 8)) & 1u) << bit;
      }
      return code;
    };
    uint8_t byte;
    if (CpuCodes<kKeyBits>::Write(at, k, kDim, kNumCodes, code_of, &byte)) return byte;
    if (at >= k.mean_at && at < k.mean_at + 2 * kDim) {
      const int from = MeanByte(static_cast<int>(at - k.mean_at) / 2);
      const int mean = 256 * static_cast<int8_t>(packed[from]) + 128 + static_cast<int8_t>(packed[from + 4]);
      return static_cast<uint8_t>((at - k.mean_at) % 2 == 0 ? mean & 255 : (mean >> 8) & 255);
    }
    if (at >= k.scale_at && at < k.scale_at + kTokens) {
      return packed[Page::kTokenScale + VectorPosition(static_cast<int>(at - k.scale_at), kTokens)];
    }
    if (kRankOne && at >= k.mean_factor_at && at < k.mean_factor_at + 2 * kTokens) {
      const int x = static_cast<int>(at - k.mean_factor_at);
      return packed[Page::kMeanFactor + 2 * VectorPosition(x / 2, kTokens) + x % 2];
    }
    return 0;
  }
  KVRAZOR_HOST_DEVICE static uint8_t UnpackValue(int64_t at, const CpuSide& v, const uint8_t* packed) {
    const auto code_of = [packed](int channel, int token) {
      int shift = 0;
      const int from = ValueByte(token, channel, &shift);
      return (static_cast<uint32_t>(packed[from]) >> shift) & 3u;
    };
    uint8_t byte;
    if (CpuCodes<2>::Write(at, v, kTokens, kNumCodes, code_of, &byte)) return byte;
    if (at >= v.norm_at && at < v.norm_at + kTokens)
      return packed[Page::kNorm + VectorPosition(static_cast<int>(at - v.norm_at), kTokens)];
    const int num_params = kTokens / (v.group_size > 0 ? v.group_size : kTokens) * kDim;
    if (at >= v.scale_at && at < v.scale_at + num_params)
      return packed[Page::kChannelScale + ChannelPosition(static_cast<int>(at - v.scale_at), v)];
    if (at >= v.centre_at && at < v.centre_at + num_params)
      return packed[Page::kCentre + ChannelPosition(static_cast<int>(at - v.centre_at), v)] ^ 128u;
    return 0;
  }
  /// Words in front of the heads: the head's two scalars, in the order of the CPU page.
  KVRAZOR_HOST_DEVICE static uint32_t UnpackScalar(int which, const uint8_t* packed) {
    return LoadAs<uint32_t>(packed + Page::kHeader + (which == 0 ? 4 : 0));
  }
};

template <int kDim, int kKeyBits = 2, int kValueBits = 2>
struct AffineWords {
  using Page = AffinePage<kDim, kKeyBits, kValueBits>;

  /// Codes of either side: `line` = token of keys, channel of values; `k` = the other one of num_k.
  template <int kBits>
  KVRAZOR_HOST_DEVICE static int CodeByte(int base, int num_k, int line, int k, int* shift) {
    const int p = line / 32, kt = k / 16, g = line % 8, q = k % 8 / 2;
    const int i = 2 * (kt / 2 % 2) + k % 16 / 8, t = line / 16 % 2;
    const int row = (p * (num_k / 64) + kt / 4) * (kBits / 2) + (kBits == 4 ? t : 0);
    const int field = (kBits == 2 ? 4 * t : 0) + 2 * (kt % 2) + line % 16 / 8;
    const int bit = 16 * (k % 2) + kBits * field;
    *shift = bit % 8;
    return base + 4 * ((row * 32 + 4 * g + q) * 4 + i) + bit / 8;
  }
  template <int kBits>
  KVRAZOR_HOST_DEVICE static uint32_t PackCodes(int x, const uint8_t* head, const CpuSide& s, int num_k) {
    constexpr int kFields = 16 / kBits;
    const int i = x % 4, lane = x / 4 % 32, g = lane / 4, q = lane % 4, row = x / 128, quads = num_k / 64;
    const int quad = row / (kBits / 2) % quads, p = row / (kBits / 2) / quads;
    uint32_t word = 0;
    for (int field = 0; field < kFields; ++field) {
      for (int next = 0; next < 2; ++next) {
        const int t = kBits == 2 ? field / 4 : row % 2;
        const int line = 32 * p + 16 * t + g + 8 * (field % 2);
        const int k = 16 * (4 * quad + 2 * (i / 2) + field / 2 % 2) + 2 * q + 8 * (i % 2) + next;
        word |= CpuCodes<kBits>::Read(head, s, num_k, line, k) << (16 * next + kBits * field);
      }
    }
    return word;
  }
  /// Word x of a parameter array, from the CPU's [num_lines / group_size][num_k].
  KVRAZOR_HOST_DEVICE static uint32_t PackKeyParams(int x, const uint8_t* from, int group_size, bool is_offset) {
    const int q = x / 4 % 4, kt = x / 16 % (kDim / 16), half = x / 16 / (kDim / 16);
    const int group = 2 * half + (is_offset ? x % 2 : x % 4 / 2), high = is_offset ? x % 4 / 2 : x % 2;
    return LoadAs<uint32_t>(from + 2 * ((32 * group / group_size) * kDim + 16 * kt + 2 * q + 8 * high));
  }
  KVRAZOR_HOST_DEVICE static uint32_t PackValueParams(int x, const uint8_t* from, int group_size, bool is_offset) {
    const int high = x % 2, odd = x % 4 / 2, q = x / 4 % 4;
    const int pair = is_offset ? x / 16 / (kDim / 32) : x / 16 % 4,
              group = is_offset ? x / 16 % (kDim / 32) : x / 16 / 4;
    return LoadAs<uint32_t>(from + 2 * ((32 * group / group_size) * kTokens + 32 * pair + 16 * odd + 2 * q + 8 * high));
  }

  KVRAZOR_HOST_DEVICE static uint32_t Pack(int w, const CpuSide& k, const CpuSide& v, const uint8_t* k_page,
                                           const uint8_t* v_page, int head) {
    const uint8_t* k_head = k_page + k.heads_at + head * k.head_bytes;
    const uint8_t* v_head = v_page + v.heads_at + head * v.head_bytes;
    const int at = 4 * w;
    if (at < Page::kKeyScale) return PackCodes<kKeyBits>(w, k_head, k, kDim);
    if (at < Page::kKeyOffset) return PackKeyParams(w - Page::kKeyScale / 4, k_head + k.scale_at, k.group_size, false);
    if (at < Page::kValueCodes)
      return PackKeyParams(w - Page::kKeyOffset / 4, k_head + k.offset_at, k.group_size, true);
    if (at < Page::kValueScale) return PackCodes<kValueBits>(w - Page::kValueCodes / 4, v_head, v, kTokens);
    if (at < Page::kValueOffset)
      return PackValueParams(w - Page::kValueScale / 4, v_head + v.scale_at, v.group_size, false);
    if (at < Page::kTokenNorm)
      return PackValueParams(w - Page::kValueOffset / 4, v_head + v.offset_at, v.group_size, true);
    uint32_t word = 0;
    if (at >= Page::kTokenNorm + 2 * kTokens) return word;
    for (int half = 0; half < 2; ++half) {
      const int token = VectorIndex((at - Page::kTokenNorm) / 2 + half, kTokens);
      constexpr uint32_t kOne = 0x3c00;  // f16
      const uint32_t norm = k.token_scale_at < 0 ? kOne : LoadAs<uint16_t>(k_page + k.token_scale_at + 2 * token);
      word |= norm << (16 * half);
    }
    return word;
  }
  /// param_byte(is_offset, group of 32 lines, k) says where a pair of parameters lies.
  template <int kBits, class ParamByte>
  KVRAZOR_HOST_DEVICE static uint8_t UnpackSide(int64_t at, const CpuSide& s, const uint8_t* packed, int codes,
                                                int num_k, int num_lines, ParamByte param_byte) {
    const auto code_of = [=](int line, int k) {
      int shift = 0;
      const int from = CodeByte<kBits>(codes, num_k, line, k, &shift);
      return (static_cast<uint32_t>(packed[from]) >> shift) & ((1u << kBits) - 1);
    };
    uint8_t byte;
    if (CpuCodes<kBits>::Write(at, s, num_k, kTokens * kDim, code_of, &byte)) return byte;
    const int num_params = num_lines / s.group_size * num_k;
    for (const bool is_offset : {false, true}) {
      const int64_t begin = is_offset ? s.offset_at : s.scale_at;
      if (at < begin || at >= begin + 2 * num_params) continue;
      const int index = static_cast<int>(at - begin) / 2, k = index % num_k;
      return packed[param_byte(is_offset, index / num_k * s.group_size / 32, k) + 2 * (k % 2) + (at - begin) % 2];
    }
    return 0;
  }
  struct KeyParamByte {
    KVRAZOR_HOST_DEVICE int operator()(bool is_offset, int group, int k) const {
      return is_offset ? Page::KeyOffsetByte(group, k) : Page::KeyScaleByte(group, k);
    }
  };
  struct ValueParamByte {
    KVRAZOR_HOST_DEVICE int operator()(bool is_offset, int group, int k) const {
      return is_offset ? Page::ValueOffsetByte(group, k) : Page::ValueScaleByte(group, k);
    }
  };
  KVRAZOR_HOST_DEVICE static uint8_t UnpackKey(int64_t at, const CpuSide& k, const uint8_t* packed) {
    return UnpackSide<kKeyBits>(at, k, packed, Page::kKeyCodes, kDim, kTokens, KeyParamByte{});
  }
  KVRAZOR_HOST_DEVICE static uint8_t UnpackValue(int64_t at, const CpuSide& v, const uint8_t* packed) {
    return UnpackSide<kValueBits>(at, v, packed, Page::kValueCodes, kTokens, kDim, ValueParamByte{});
  }
  KVRAZOR_HOST_DEVICE static uint16_t UnpackTokenNorm(int token, const uint8_t* packed) {
    return LoadAs<uint16_t>(packed + Page::kTokenNorm + 2 * VectorPosition(token, kTokens));
  }
};

}  // namespace kvrazor::cuda

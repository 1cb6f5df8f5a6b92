// The conversion between the CPU page and the packed page, word by word, as plain functions that the host and the device share.
// Gather* computes one word of the result from the other form; nothing is rounded, so a round trip gives the same bytes.
#pragma once

#include <cstdint>

#include "src/backends/cuda/packed_page.h"

namespace kvrazor::cuda {

/// Byte offsets of include/kvrazor/layout.h, without its types (device code).
struct CpuSide {
  int64_t page_bytes, token_scale_at, head_scalars_at, heads_at, head_bytes, codes_at, scale_at, offset_at, mean_at,
      norm_at, centre_at;
  int group_size;
};

template <class T>
KVRAZOR_HOST_DEVICE inline T LoadAs(const uint8_t* p) {
  T value = 0;
  for (unsigned i = 0; i < sizeof(T); ++i) value |= static_cast<T>(p[i]) << (8 * i);
  return value;
}

/// Code of (lane, k) in a CPU code block: lane = token of keys, channel of values; k = the other one of num_k.
KVRAZOR_HOST_DEVICE inline uint32_t CpuCode(const uint8_t* codes, int num_k, int lane, int k) {
  const int row = (lane / 16) * (num_k / 16) + k / 16;
  return (codes[row * 64 + (lane % 16) * 4 + k % 4] >> ((k % 16) / 4 * 2)) & 3;
}

/// Token or channel at position i of a vector kept as [8 g][n / 8].
KVRAZOR_HOST_DEVICE constexpr int VectorIndex(int i, int n) {
  const int g = i / (n / 8);
  const int j = i % (n / 8);
  return 16 * (j / 2) + g + 8 * (j % 2);
}
KVRAZOR_HOST_DEVICE constexpr int VectorPosition(int x, int n) {
  return (x % 8) * (n / 8) + 2 * (x / 16) + (x % 16) / 8;
}

template <int kDim>
struct RazorWords {
  using Page = RazorPage<kDim>;

  /// Where the code of a key (token, channel) lies: byte, and shift in it.
  KVRAZOR_HOST_DEVICE static int KeyByte(int token, int channel, int* shift) {
    const int kt = channel / 32, tg = token / 64, g = token % 8, q = channel % 16 / 4;
    const int r = token % 16 / 8 + 2 * (channel % 32 / 16);
    *shift = 2 * (token / 16 % 4);
    return Page::kKeyCodes + 4 * ((kt * 2 + tg) * 128 + (4 * g + q) * 4 + r) + channel % 4;
  }
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
      const int lane = w / 4 % 32, g = lane / 4, q = lane % 4, r = w % 4, tg = w / 128 % 2, kt = w / 256;
      for (int e = 0; e < 4; ++e) {
        for (int j = 0; j < 4; ++j) {
          const int token = 16 * (4 * tg + j) + g + 8 * (r & 1);
          word |= CpuCode(k_head + k.codes_at, kDim, token, 32 * kt + 16 * (r >> 1) + 4 * q + e) << (8 * e + 2 * j);
        }
      }
    } else if (at < Page::kMean) {
      const int x = w - Page::kValueCodes / 4;
      const int lane = x / 4 % 32, g = lane / 4, q = lane % 4, r = x % 4, dg = x / 128 % (kDim / 64),
                kt = x / 128 / (kDim / 64);
      for (int e = 0; e < 4; ++e) {
        for (int j = 0; j < 4; ++j) {
          const int token = 32 * kt + 16 * (r >> 1) + 2 * q + (e >> 1) + 8 * (e & 1);
          word |= CpuCode(v_head + v.codes_at, kTokens, 16 * (4 * dg + j) + g + 8 * (r & 1), token) << (8 * e + 2 * j);
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
        } else if (byte < Page::kChannelScale) {
          x = v_head[v.norm_at + VectorIndex(byte - Page::kNorm, kTokens)];
        } else if (byte < Page::kCentre) {
          x = v_head[v.scale_at + VectorIndex(byte - Page::kChannelScale, kDim)];
        } else {
          x = v_head[v.centre_at + VectorIndex(byte - Page::kCentre, kDim)] ^ 128u;
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

  /// Byte `at` of one head's block in the CPU page of keys.
  KVRAZOR_HOST_DEVICE static uint8_t UnpackKey(int at, const CpuSide& k, const uint8_t* packed) {
    int shift = 0;
    if (at < k.codes_at + kTokens * kDim / 4) {
      uint32_t byte = 0;
      const int x = at - static_cast<int>(k.codes_at);
      const int token = x / 64 / (kDim / 16) * 16 + x % 64 / 4;
      for (int j = 0; j < 4; ++j) {
        const int from = KeyByte(token, x / 64 % (kDim / 16) * 16 + 4 * j + x % 4, &shift);
        byte |= ((packed[from] >> shift) & 3u) << (2 * j);
      }
      return static_cast<uint8_t>(byte);
    }
    if (at >= k.mean_at && at < k.mean_at + 2 * kDim) {
      const int from = MeanByte(static_cast<int>(at - k.mean_at) / 2);
      const int mean = 256 * static_cast<int8_t>(packed[from]) + 128 + static_cast<int8_t>(packed[from + 4]);
      return static_cast<uint8_t>((at - k.mean_at) % 2 == 0 ? mean & 255 : (mean >> 8) & 255);
    }
    if (at >= k.scale_at && at < k.scale_at + kTokens) {
      return packed[Page::kTokenScale + VectorPosition(static_cast<int>(at - k.scale_at), kTokens)];
    }
    return 0;
  }
  KVRAZOR_HOST_DEVICE static uint8_t UnpackValue(int at, const CpuSide& v, const uint8_t* packed) {
    int shift = 0;
    if (at < v.codes_at + kTokens * kDim / 4) {
      uint32_t byte = 0;
      const int x = at - static_cast<int>(v.codes_at);
      const int channel = x / 64 / (kTokens / 16) * 16 + x % 64 / 4;
      for (int j = 0; j < 4; ++j) {
        const int from = ValueByte(x / 64 % (kTokens / 16) * 16 + 4 * j + x % 4, channel, &shift);
        byte |= ((packed[from] >> shift) & 3u) << (2 * j);
      }
      return static_cast<uint8_t>(byte);
    }
    if (at >= v.norm_at && at < v.norm_at + kTokens)
      return packed[Page::kNorm + VectorPosition(static_cast<int>(at - v.norm_at), kTokens)];
    if (at >= v.scale_at && at < v.scale_at + kDim)
      return packed[Page::kChannelScale + VectorPosition(static_cast<int>(at - v.scale_at), kDim)];
    if (at >= v.centre_at && at < v.centre_at + kDim)
      return packed[Page::kCentre + VectorPosition(static_cast<int>(at - v.centre_at), kDim)] ^ 128u;
    return 0;
  }
  /// Words in front of the heads: the head's two scalars, in the order of the CPU page.
  KVRAZOR_HOST_DEVICE static uint32_t UnpackScalar(int which, const uint8_t* packed) {
    return LoadAs<uint32_t>(packed + Page::kHeader + (which == 0 ? 4 : 0));
  }
};

template <int kDim>
struct AffineWords {
  using Page = AffinePage<kDim>;

  /// Codes of either side: `line` = token of keys, channel of values; `k` = the other one of num_k.
  KVRAZOR_HOST_DEVICE static int CodeByte(int base, int num_k, int line, int k, int* shift) {
    const int p = line / 32, kt = k / 16, g = line % 8, q = k % 8 / 2;
    const int i = 2 * (kt / 2 % 2) + k % 16 / 8;
    const int field = 4 * (line / 16 % 2) + 2 * (kt % 2) + line % 16 / 8;
    const int bit = 16 * (k % 2) + 2 * field;
    *shift = bit % 8;
    return base + 4 * (((p * (num_k / 64) + kt / 4) * 32 + 4 * g + q) * 4 + i) + bit / 8;
  }
  KVRAZOR_HOST_DEVICE static uint32_t PackCodes(int x, const uint8_t* codes, int num_k) {
    const int i = x % 4, lane = x / 4 % 32, g = lane / 4, q = lane % 4, quads = num_k / 64;
    const int quad = x / 128 % quads, p = x / 128 / quads;
    uint32_t word = 0;
    for (int field = 0; field < 8; ++field) {
      for (int next = 0; next < 2; ++next) {
        const int line = 32 * p + 16 * (field / 4) + g + 8 * (field % 2);
        const int kt = 4 * quad + 2 * (i / 2) + field / 2 % 2;
        word |= CpuCode(codes, num_k, line, 16 * kt + 2 * q + 8 * (i % 2) + next) << (16 * next + 2 * field);
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
    if (at < Page::kKeyScale) return PackCodes(w, k_head + k.codes_at, kDim);
    if (at < Page::kKeyOffset) return PackKeyParams(w - Page::kKeyScale / 4, k_head + k.scale_at, k.group_size, false);
    if (at < Page::kValueCodes)
      return PackKeyParams(w - Page::kKeyOffset / 4, k_head + k.offset_at, k.group_size, true);
    if (at < Page::kValueScale) return PackCodes(w - Page::kValueCodes / 4, v_head + v.codes_at, kTokens);
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
  template <class ParamByte>
  KVRAZOR_HOST_DEVICE static uint8_t UnpackSide(int at, const CpuSide& s, const uint8_t* packed, int codes, int num_k,
                                                int num_lines, ParamByte param_byte) {
    int shift = 0;
    if (at < s.codes_at + kTokens * kDim / 4) {
      uint32_t byte = 0;
      const int x = at - static_cast<int>(s.codes_at);
      const int line = x / 64 / (num_k / 16) * 16 + x % 64 / 4;
      for (int j = 0; j < 4; ++j) {
        const int from = CodeByte(codes, num_k, line, x / 64 % (num_k / 16) * 16 + 4 * j + x % 4, &shift);
        byte |= ((packed[from] >> shift) & 3u) << (2 * j);
      }
      return static_cast<uint8_t>(byte);
    }
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
  KVRAZOR_HOST_DEVICE static uint8_t UnpackKey(int at, const CpuSide& k, const uint8_t* packed) {
    return UnpackSide(at, k, packed, Page::kKeyCodes, kDim, kTokens, KeyParamByte{});
  }
  KVRAZOR_HOST_DEVICE static uint8_t UnpackValue(int at, const CpuSide& v, const uint8_t* packed) {
    return UnpackSide(at, v, packed, Page::kValueCodes, kTokens, kDim, ValueParamByte{});
  }
  KVRAZOR_HOST_DEVICE static uint16_t UnpackTokenNorm(int token, const uint8_t* packed) {
    return LoadAs<uint16_t>(packed + Page::kTokenNorm + 2 * VectorPosition(token, kTokens));
  }
};

}  // namespace kvrazor::cuda

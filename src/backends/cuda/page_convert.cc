#include "src/backends/cuda/page_convert.h"

#include <cstring>

#include "src/backends/cuda/cpu_side.h"
#include "src/backends/cuda/page_words.h"
#include "src/backends/cuda/plan_op.h"

namespace kvrazor::cuda {
namespace {

constexpr PlanOp kOp{"pages"};

template <class Words>
void PackWith(const PackedFormat& f, const uint8_t* k_page, const uint8_t* v_page, uint8_t* packed) {
  const CpuSide k = MakeCpuSide(f.layer.k);
  const CpuSide v = MakeCpuSide(f.layer.v);
  for (int h = 0; h < f.num_kv_heads; ++h) {
    for (int w = 0; w < f.head_bytes / 4; ++w) {
      const uint32_t word = Words::Pack(w, k, v, k_page, v_page, h);
      std::memcpy(packed + h * f.head_bytes + 4 * w, &word, sizeof(word));
    }
  }
}

template <class Words>
void UnpackWith(const PackedFormat& f, const uint8_t* packed, uint8_t* k_page, uint8_t* v_page) {
  const CpuSide k = MakeCpuSide(f.layer.k);
  const CpuSide v = MakeCpuSide(f.layer.v);
  for (int64_t at = 0; at < k.page_bytes; ++at)
    k_page[at] = UnpackKeyPageByte<Words>(at, k, f.num_kv_heads, f.head_bytes, packed);
  for (int64_t at = 0; at < v.page_bytes; ++at)
    v_page[at] = UnpackValuePageByte<Words>(at, v, f.num_kv_heads, f.head_bytes, packed);
}

int RowByteOf(int head_dim, int token, int channel) {
  if (head_dim == 64) return RowByte<64>(token, channel);
  return head_dim == 128 ? RowByte<128>(token, channel) : RowByte<256>(token, channel);
}

/// Calls visit(byte in the packed rows, index in [tokens][heads][head_dim], is_value) for every value.
template <class Visit>
void ForEachRowValue(const PackedFormat& f, int capacity, int num_tokens, Visit visit) {
  if (num_tokens < 0 || num_tokens > capacity) {
    kOp.Refuse(std::to_string(num_tokens) + " rows for room of " + std::to_string(capacity) + ".");
  }
  const int64_t side_bytes = int64_t{capacity} * f.head_dim * 2;
  for (int h = 0; h < f.num_kv_heads; ++h) {
    for (int t = 0; t < num_tokens; ++t) {
      for (int c = 0; c < f.head_dim; ++c) {
        const int64_t index = (int64_t{t} * f.num_kv_heads + h) * f.head_dim + c;
        const int64_t byte = 2 * h * side_bytes + RowByteOf(f.head_dim, t, c);
        visit(byte, index, false);
        visit(byte + side_bytes, index, true);
      }
    }
  }
}

/// An affine side that packed pages hold and their kernels seal.
bool IsPackedAffine(const SideRecipe& side, Axis axis) {
  return side.codec == Codec::kAffine && side.axis == axis && (side.bits == 2 || side.bits == 4) &&
         side.clip_percent == 100 &&
         (side.zero_point == ZeroPoint::kFloatMin || side.zero_point == ZeroPoint::kRounded);
}

/// Of a device with tensor-core pages.
PageKind KindOf(const PackedFormat& f) {
  const SideRecipe& k = f.layer.k.recipe;
  const SideRecipe& v = f.layer.v.recipe;
  if (f.head_dim == 256 || k.rotate != v.rotate) return PageKind::kPlain;
  if (k.codec == Codec::kRazorKey && v.codec == Codec::kRazorValue && (k.bits == 2 || k.bits == 3) && v.bits == 2)
    return PageKind::kRazor;
  if (IsPackedAffine(k, Axis::kPerChannel) && IsPackedAffine(v, Axis::kPerToken)) return PageKind::kAffine;
  return PageKind::kPlain;
}

std::string SideText(const SideRecipe& side) {
  const std::string bits = std::to_string(side.bits) + "-bit";
  switch (side.codec) {
    case Codec::kF16: break;
    case Codec::kAffine: return bits + " affine (per " + (side.axis == Axis::kPerChannel ? "channel)" : "token)");
    case Codec::kRazorKey:
    case Codec::kRazorValue: return bits + " razor";
    case Codec::kCodebook: return bits + " codebook";
  }
  return bits;
}

}  // namespace

int64_t PackedFormat::sink_bytes() const { return int64_t{num_kv_heads} * 2 * kMaxSinkTokens * head_dim * 2; }

PageForm PackedFormat::form() const {
  PageForm form{.kind = kind, .head_dim = head_dim, .key_bits = layer.k.recipe.bits, .value_bits = layer.v.recipe.bits};
  if (kind == PageKind::kRazor) {
    form.rank_one_mean = layer.k.recipe.rank_one_mean;
    form.value_groups = layer.v.recipe.group_size == 0 ? 1 : 4;  // groups of 64 tokens repeat their parameters
  }
  return form;
}

std::string PageFormText(const PageForm& form) {
  const std::string bits = std::to_string(form.key_bits) + "-bit keys";
  if (form.kind == PageKind::kPlain) return "plain pages of " + bits;
  if (form.kind == PageKind::kAffine)
    return "affine pages of " + bits + " and " + std::to_string(form.value_bits) + "-bit values";
  return "razor pages of " + bits + (form.rank_one_mean ? " with a rank-one mean" : "") +
         (form.value_groups == 1 ? "" : " and values in groups of tokens");
}

std::string FormatText(const PackedFormat& format) {
  if (format.kind != PageKind::kPlain) return PageFormText(format.form());
  return "plain pages of " + SideText(format.layer.k.recipe) + " keys and " + SideText(format.layer.v.recipe) +
         " values";
}

PackedFormat MakePackedFormat(const LayerFormat& layer, int compute_major) {
  const SideRecipe& k = layer.k.recipe;
  const SideRecipe& v = layer.v.recipe;
  PackedFormat f;
  f.layer = layer;
  f.head_dim = layer.k.shape.head_dim;
  f.num_kv_heads = layer.k.shape.num_kv_heads;
  f.rotate = k.rotate;
  if (!(layer.k.shape == layer.v.shape))
    kOp.Refuse("keys and values have different shapes; keep this layer on the cpu backend.");
  if (f.head_dim != 64 && f.head_dim != 128 && f.head_dim != 256) {
    kOp.Refuse("no page for head_dim=" + std::to_string(f.head_dim) +
               "; possible are 64, 128 and 256. Choose the cpu backend.");
  }
  if (k.codec == Codec::kF16 || v.codec == Codec::kF16) {
    kOp.Refuse(
        "no sealed page for " + SideText(k) + " keys and " + SideText(v) +
        " values; both sides must be quantized. Keep such a layer in row pages only, or choose the cpu backend.");
  }
  f.kind = compute_major >= kPackedComputeMajor ? KindOf(f) : PageKind::kPlain;
  if (f.kind != PageKind::kPlain) DispatchWords(f, [&](auto words) { f.head_bytes = decltype(words)::Page::kBytes; });
  return f;
}

void PackPage(const PackedFormat& f, const std::byte* k_page, const std::byte* v_page, std::byte* packed) {
  if (f.kind == PageKind::kPlain) {
    std::memcpy(packed, k_page, static_cast<size_t>(f.layer.k.page_bytes));
    std::memcpy(packed + f.layer.k.page_bytes, v_page, static_cast<size_t>(f.layer.v.page_bytes));
    return;
  }
  DispatchWords(f, [&](auto words) {
    PackWith<decltype(words)>(f, reinterpret_cast<const uint8_t*>(k_page), reinterpret_cast<const uint8_t*>(v_page),
                              reinterpret_cast<uint8_t*>(packed));
  });
}

void UnpackPage(const PackedFormat& f, const std::byte* packed, std::byte* k_page, std::byte* v_page) {
  if (f.kind == PageKind::kPlain) {
    std::memcpy(k_page, packed, static_cast<size_t>(f.layer.k.page_bytes));
    std::memcpy(v_page, packed + f.layer.k.page_bytes, static_cast<size_t>(f.layer.v.page_bytes));
    return;
  }
  DispatchWords(f, [&](auto words) {
    UnpackWith<decltype(words)>(f, reinterpret_cast<const uint8_t*>(packed), reinterpret_cast<uint8_t*>(k_page),
                                reinterpret_cast<uint8_t*>(v_page));
  });
}

void PackRows(const PackedFormat& f, int capacity, int num_tokens, const f16_bits* k, const f16_bits* v,
              std::byte* packed) {
  ForEachRowValue(f, capacity, num_tokens, [&](int64_t byte, int64_t index, bool is_value) {
    std::memcpy(packed + byte, (is_value ? v : k) + index, sizeof(f16_bits));
  });
}

void UnpackRows(const PackedFormat& f, int capacity, int num_tokens, const std::byte* packed, f16_bits* k,
                f16_bits* v) {
  ForEachRowValue(f, capacity, num_tokens, [&](int64_t byte, int64_t index, bool is_value) {
    std::memcpy((is_value ? v : k) + index, packed + byte, sizeof(f16_bits));
  });
}

}  // namespace kvrazor::cuda

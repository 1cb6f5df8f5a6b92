// Pages of the CPU (include/kvrazor/layout.h) to pages of the GPU (packed_page.h) and back, on the host or on the device.
// Nothing is rounded: a page sealed or saved by one side is read by the other, and a round trip gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/ops/page_set.h"

typedef struct CUstream_st* cudaStream_t;

namespace kvrazor::cuda {

/// Razor and affine pages lie as tensor cores take them (packed_page.h) and need compute capability 9.0. Plain pages are the CPU's bytes
/// (plain_page.h): every recipe, every head_dim, every card from 8.0 on; attention over them decodes them first.
enum class PageKind { kRazor, kAffine, kPlain };
inline constexpr int kPackedComputeMajor = 9;
inline constexpr int kPlainComputeMajor = 8;

/// What decides where the bytes of a packed page lie, and so which kernel reads it: a template argument of packed_page.h's pages each.
/// Plain pages have a head_dim and the codes' widths only.
struct PageForm {
  PageKind kind = PageKind::kRazor;
  int head_dim = 0;
  int key_bits = 2;            ///< razor 2, 3; affine 2, 4
  int value_bits = 2;          ///< razor 2; affine 2, 4
  bool rank_one_mean = false;  ///< razor keys
  int value_groups = 1;        ///< razor values, groups of tokens that have parameters: 1, 4
  bool operator==(const PageForm&) const = default;
};
/// In words, without the head dimension.
std::string PageFormText(const PageForm& form);

/// How the pages of one layer are kept on the GPU.
struct PackedFormat {
  PageKind kind = PageKind::kRazor;
  LayerFormat layer;
  int head_dim = 0;
  int num_kv_heads = 0;
  bool rotate = false;     ///< sealed keys and values are rotated (plain pages: the keys; values as their recipe says)
  int64_t head_bytes = 0;  ///< of one head's keys and values in a packed page; 0 with plain pages

  PageForm form() const;
  int64_t page_bytes() const {
    return kind == PageKind::kPlain ? layer.k.page_bytes + layer.v.page_bytes : head_bytes * num_kv_heads;
  }
  int64_t row_page_bytes() const { return int64_t{num_kv_heads} * 2 * kPageTokens * head_dim * 2; }
  int64_t sink_bytes() const;  ///< sink rows of one sequence
};

/// The page of this layer that the fastest kernels of a device read: packed where there is such a page and compute_major is 9 or more,
/// plain otherwise. Throws Error, naming what is possible, if the GPU has no page for it at all.
PackedFormat MakePackedFormat(const LayerFormat& layer, int compute_major = kPackedComputeMajor);
/// Its pages in words, without the head dimension.
std::string FormatText(const PackedFormat& format);

/// One page on the host. k_page, v_page: PageLayout::page_bytes each; packed: page_bytes().
void PackPage(const PackedFormat& format, const std::byte* k_page, const std::byte* v_page, std::byte* packed);
void UnpackPage(const PackedFormat& format, const std::byte* packed, std::byte* k_page, std::byte* v_page);

/// 16-bit rows [num_tokens][num_kv_heads][head_dim] to a row page (capacity 128) or to sink rows (capacity 16), and back.
void PackRows(const PackedFormat& format, int capacity, int num_tokens, const f16_bits* k, const f16_bits* v,
              std::byte* packed);
void UnpackRows(const PackedFormat& format, int capacity, int num_tokens, const std::byte* packed, f16_bits* k,
                f16_bits* v);

/// The same for many pages in device memory, contiguous on both sides; enqueued on `stream`. Throws Error if a launch fails.
void PackPagesAsync(const PackedFormat& format, int64_t num_pages, const std::byte* k_pages, const std::byte* v_pages,
                    std::byte* packed, cudaStream_t stream);
void UnpackPagesAsync(const PackedFormat& format, int64_t num_pages, const std::byte* packed, std::byte* k_pages,
                      std::byte* v_pages, cudaStream_t stream);

}  // namespace kvrazor::cuda

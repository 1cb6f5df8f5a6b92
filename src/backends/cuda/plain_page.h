// Plain pages: what the GPU keeps where no tensor-core page (packed_page.h) exists for a format, or the device is older than compute
// capability 9.0. Bytes are the CPU's (include/kvrazor/layout.h), untouched: the page of keys, behind it the page of values. So every recipe
// and every head_dim has one, conversion is a copy, and one set of kernels (plain_read.cuh) reads them all.
#pragma once

#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/page_words.h"

namespace kvrazor::cuda {

/// One side of a plain page as kernels take it, by value.
struct PlainSide {
  CpuSide at;
  Codec codec;
  ZeroPoint zero_point;  // affine
  int32_t bits;
  bool per_channel;    // affine
  bool rank_one_mean;  // razor keys
  bool rotate;
  float clip;           // affine: share of a group's range
  float level[16];      // codebook: value of a code in steps of its grid
  float threshold[15];  // codebook: where the next code begins, in steps
  float step;           // codebook: of the grid, in standard deviations
};

struct PlainPage {
  PlainSide k, v;  // values begin at byte k.at.page_bytes
  int64_t page_bytes;
};

/// Of a format whose kind is kPlain.
PlainPage MakePlainPage(const PackedFormat& format);

}  // namespace kvrazor::cuda

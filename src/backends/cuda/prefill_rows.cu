// What chunked prefill does before its attention: where every sequence's rows and tiles lie, and the rows that no packed page holds.
//
//   workspace pages   | sequence 0: pages 0, 1, ... | sequence 1 | ...     128 rows each; a sequence's last page ends with zeros
//
// The schedule kernel (a CTA a sequence) writes a job for dequantize for each packed page and names the pages that the rows kernel must look
// after. That one runs behind dequantize: the new rows may begin inside a packed page.
#include <algorithm>

#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/prefill_launch.h"
#include "src/backends/cuda/prefill_params.h"
#include "src/backends/cuda/ptx.cuh"

namespace kvrazor::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowCtas = 64;  // a head and side
constexpr int kMaskCtas = 256;  // a tile, at most
constexpr uint32_t kMinusInfinity = 0xfc00;  // f16

/// How many shares a tile's tokens are cut into: what makes the grid end first, if starting a CTA costs as much as two pages, and a share
/// that is stored and merged as much as a 32nd of one on all multiprocessors together. By one warp.
__device__ int ChooseSplits(const PrefillParams& p, int items, int pages) {
  int best = 1;
  float least = __int_as_float(0x7f800000);
  const int most = min(pages, p.max_partials / max(items, 1));
  for (int splits = 1 + static_cast<int>(threadIdx.x % 32); splits == 1 || splits <= most; splits += 32) {
    const int waves = (items * splits + p.num_sms - 1) / p.num_sms;
    const float cost = static_cast<float>(waves) * static_cast<float>((pages + splits - 1) / splits + 2) +
                       (splits > 1 ? static_cast<float>(items * splits) / 32 : 0);
    if (cost >= least) continue;
    least = cost;
    best = splits;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float cost = __shfl_xor_sync(~0u, least, lanes);
    const int splits = __shfl_xor_sync(~0u, best, lanes);
    if (cost > least || (cost == least && splits >= best)) continue;
    least = cost;
    best = splits;
  }
  return best;
}

struct Lengths {
  PrefillSequence sequence;
  int pages, tiles;
};

__device__ int Clamp(int x, int low, int high) { return min(max(x, low), high); }

__device__ Lengths LengthsOf(const PrefillParams& p, int i) {
  const int begin = Clamp(p.new_begin[i], 0, p.max_new_tokens), end = Clamp(p.new_begin[i + 1], begin, p.max_new_tokens);
  PrefillSequence s{};
  s.new_begin = begin;
  s.new_len = end - begin;
  s.kv_len = Clamp(p.kv_len[i], 0, p.table_stride * kTokens);
  s.total = s.kv_len + (p.k ? s.new_len : 0);
  if (p.window > 0) s.first_visible = max(0, s.total - p.window - (p.causal ? s.new_len - 1 : 0));
  const int pages = s.new_len == 0 ? 0 : (s.total + kTokens - 1) / kTokens;
  return {s, pages, (s.new_len * p.gqa_ratio + kPrefillRows - 1) / kPrefillRows};
}

__global__ void __launch_bounds__(kThreads) PrefillScheduleKernel(const __grid_constant__ PrefillParams p) {
  __shared__ unsigned long long pages_before, pages_all;
  __shared__ int tiles_before, tiles_all, most_pages;
  const int b = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  if (tid == 0) {
    pages_before = pages_all = 0;
    tiles_before = tiles_all = most_pages = 0;
  }
  __syncthreads();
  for (int i = tid; i < p.batch_size; i += kThreads) {
    const Lengths x = LengthsOf(p, i);
    atomicAdd(&pages_all, static_cast<unsigned long long>(x.pages));
    atomicAdd(&tiles_all, x.tiles);
    atomicMax(&most_pages, x.pages);
    if (i < b) {
      atomicAdd(&pages_before, static_cast<unsigned long long>(x.pages));
      atomicAdd(&tiles_before, x.tiles);
    }
  }
  __syncthreads();
  Lengths own = LengthsOf(p, b);
  PrefillSequence& s = own.sequence;
  const int64_t first = static_cast<int64_t>(pages_before), room = p.workspace_pages;
  const bool fits = first + own.pages <= room;
  s.row_begin = fits ? static_cast<int32_t>(first * kTokens) : -1;
  if (tid == 0) p.sequences[b] = s;

  for (int page = tid; page < own.pages && first + page < room; page += kThreads) {
    const bool visible = fits && (page + 1) * kTokens > s.first_visible;
    const bool in_pages = page * kTokens < s.kv_len;
    const int32_t entry = in_pages && visible ? p.page_table[int64_t{b} * p.table_stride + page] : -1;
    const bool packed = !IsRowPage(entry);
    const bool sinks = page == 0 && p.sink_tokens > 0;
    const int64_t slot = first + page;
    p.jobs[slot] = {.source = packed ? entry : -1,
                    .target = static_cast<int32_t>(slot * kTokens),
                    .sink = sinks ? b : -1,
                    .exact_tokens = sinks ? p.sink_tokens : 0};
    const bool other_rows = visible && (!packed || (page + 1) * kTokens > s.kv_len);
    p.pages[slot] = {other_rows ? b : -1, page};
  }
  for (int64_t slot = static_cast<int64_t>(pages_all) + b * kThreads + tid; slot < room; slot += int64_t{p.batch_size} * kThreads) {
    p.jobs[slot] = {.source = -1, .target = 0, .sink = -1, .exact_tokens = 0};
    p.pages[slot] = {-1, 0};
  }
  for (int j = tid; j < own.tiles && tiles_before + j < p.max_tiles; j += kThreads) p.tiles->tile[tiles_before + j] = {b, j};
  if (b == 0 && tid < 32) {
    const int count = min(tiles_all, p.max_tiles);
    const int splits = ChooseSplits(p, count * p.num_kv_heads, most_pages);
    if (tid == 0) p.tiles->count = count;
    if (tid == 0) p.tiles->splits = splits;
  }
}

/// A CTA takes a tile and 32 pages of tokens, a warp each.
__global__ void __launch_bounds__(32 * 32) PrefillVisibleKernel(const __grid_constant__ PrefillParams p) {
  __shared__ uint32_t bits;
  WaitForLastKernel();
  LetNextKernelStart();
  const int number = static_cast<int>(blockIdx.x);
  if (number >= p.tiles->count) return;
  const PrefillTile tile = p.tiles->tile[number];
  const PrefillSequence s = p.sequences[tile.sequence];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int first_row = tile.index * kPrefillRows, last_row = min(first_row + kPrefillRows, s.new_len * p.gqa_ratio) - 1;
  for (int word = static_cast<int>(blockIdx.y); word * 32 * kTokens < s.total; word += static_cast<int>(gridDim.y)) {
    if (threadIdx.x == 0) bits = 0;
    __syncthreads();
    const int from = (word * 32 + warp) * kTokens + 4 * lane;  // this lane's four tokens
    bool any = false;
    for (int i = first_row / p.gqa_ratio; i <= last_row / p.gqa_ratio && !any; ++i) {
      const int end = PrefillVisibleEnd(p, s, i), begin = PrefillVisibleBegin(p, end);
      bool seen = false;
      if (from < end && from + 4 > begin) {
        const uint2 four = __ldg(reinterpret_cast<const uint2*>(p.mask + (s.new_begin + i) * p.mask_stride + from));
        const uint32_t value[4] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
#pragma unroll
        for (int t = 0; t < 4; ++t) seen |= from + t >= begin && from + t < end && value[t] != kMinusInfinity;
      }
      any = __any_sync(~0u, seen);
    }
    if (any && lane == 0) atomicOr(&bits, 1u << warp);
    __syncthreads();
    if (threadIdx.x == 0) p.visible[int64_t{number} * p.visible_words + word] = bits;
  }
}

/// The first page from `from` on, in steps of `step`, that needs rows; `count` if none. The same for all threads.
__device__ int NextPage(const PrefillPage* pages, int count, int from, int step) {
  for (int64_t first = from; first < count; first += 32 * step) {
    const int64_t i = first + static_cast<int>(threadIdx.x & 31) * step;
    const unsigned found = __ballot_sync(~0u, i < count && pages[i].sequence >= 0);
    if (found) return static_cast<int>(first + (__ffs(found) - 1) * step);
  }
  return count;
}

__device__ uint32_t SaturatedPair(uint32_t bf16_pair) {
  constexpr float kLargest = 65504;
  const auto clamp = [](float x) { return x != x ? x : fminf(fmaxf(x, -kLargest), kLargest); };
  return PackF16(clamp(LowBf16(bf16_pair)), clamp(HighBf16(bf16_pair)));
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) PrefillRowsKernel(const __grid_constant__ PrefillParams p) {
  constexpr int kChunks = kDim / 8;
  WaitForLastKernel();
  LetNextKernelStart();
  const int head = static_cast<int>(blockIdx.y), side = static_cast<int>(blockIdx.z);
  const int step = static_cast<int>(gridDim.x);
  const int64_t head_rows = int64_t{p.workspace_pages} * kTokens;
  uint16_t* rows = (side == 0 ? p.k_rows : p.v_rows) + head * head_rows * kDim;
  const uint16_t* fresh = (side == 0 ? p.k : p.v) + head * kDim;
  for (int slot = static_cast<int>(blockIdx.x); (slot = NextPage(p.pages, p.workspace_pages, slot, step)) < p.workspace_pages; slot += step) {
    const PrefillPage at = p.pages[slot];
    const PrefillSequence s = p.sequences[at.sequence];
    const bool in_pages = at.page * kTokens < s.kv_len;
    const int32_t entry = in_pages ? p.page_table[int64_t{at.sequence} * p.table_stride + at.page] : 0;
    const uint8_t* page = p.row_pages + ((int64_t{PageIndex(entry)} * p.num_kv_heads + head) * 2 + side) * (kTokens * 2 * kDim);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks, token = at.page * kTokens + row;
      uint4 x{};
      if (token < s.kv_len) {
        if (!IsRowPage(entry)) continue;  // dequantize wrote it
        x = *reinterpret_cast<const uint4*>(page + RowByte<kDim>(row, 8 * chunk));
      } else if (token < s.total) {
        x = *reinterpret_cast<const uint4*>(fresh + (s.new_begin + token - s.kv_len) * p.kv_stride + 8 * chunk);
        if (p.bf16) x = make_uint4(SaturatedPair(x.x), SaturatedPair(x.y), SaturatedPair(x.z), SaturatedPair(x.w));
      }
      *reinterpret_cast<uint4*>(rows + (int64_t{slot} * kTokens + row) * kDim + 8 * chunk) = x;
    }
  }
}

}  // namespace

cudaError_t LaunchPrefillSchedule(const PrefillParams& p, cudaStream_t stream) {
  PrefillScheduleKernel<<<static_cast<unsigned>(p.batch_size), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t LaunchPrefillVisible(const PrefillParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.max_tiles), static_cast<unsigned>(std::min(p.visible_words, kMaskCtas)));
  return LaunchBehind(PrefillVisibleKernel, grid, 32 * 32, 0, p, stream);
}

cudaError_t LaunchPrefillRows(const PrefillParams& p, int head_dim, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(std::min(p.workspace_pages, kRowCtas)), static_cast<unsigned>(p.num_kv_heads), 2);
  const auto kernel = head_dim == 64 ? PrefillRowsKernel<64> : head_dim == 128 ? PrefillRowsKernel<128> : PrefillRowsKernel<256>;
  return LaunchBehind(kernel, grid, kThreads, 0, p, stream);
}

}  // namespace kvrazor::cuda

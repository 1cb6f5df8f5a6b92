// Flash attention of a tile of query rows over the workspace's 16-bit rows. CTA = (128 rows of a sequence and kv head, share of its tokens).
//
//   producer     a warp: boxes of 64 channels x a block of tokens of K and V into the stages of a ring
//   consumers    two warpgroups of 64 query rows. While one multiplies, the other does its softmax (named barriers hand the tensor
//                cores over), and within a warpgroup the logits of the next block are formed while this block's values are summed
//
// A query row is (new token, query head of the kv head), token by token: row r is new token r / gqa_ratio. Blocks of tokens are
// taken from the last to the first; the first ones and those at the window's edge look at every token's visibility.
//
// D = 256: blocks of 64 tokens, else 128. D = 128: 32 KB of queries and 2 x (32 + 32) KB of keys and values; a block is 4 x 128 x 128 x 128 operations for 64 KB.
#pragma once

#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/prefill_params.h"
#include "src/backends/cuda/prefill_warpgroup.cuh"
#include "src/backends/cuda/ptx.cuh"

namespace kvrazor::cuda {

inline constexpr int kPrefillConsumers = 2;  // warpgroups
inline constexpr int kWarpgroup = 128;       // threads
inline constexpr int kPrefillThreads = (1 + kPrefillConsumers) * kWarpgroup;
static_assert(kPrefillRows == 64 * kPrefillConsumers);

/// What a CTA does: rows of a tile over blocks [block_begin, block_end), of which [plain_begin, plain_end) are seen whole by every row.
template <int kBlock>
struct PrefillWork {
  static constexpr int kBlocksAPage = kTokens / kBlock;
  PrefillSequence sequence;
  int item, head, splits;
  int first_row, num_rows;  // of the sequence's rows; rows of the whole sequence
  int block_begin, block_end, plain_begin, plain_end;
  const uint32_t* visible;  // of the tile, or nullptr

  /// The last block before `block` of which a row sees something; less than block_begin if there is none.
  template <bool kSpecial>
  __device__ __forceinline__ int BlockBefore(int block) const {
    --block;
    if constexpr (kSpecial) {
      while (visible && block >= block_begin) {
        const int page = block / kBlocksAPage;
        const uint32_t word = visible[page / 32] << (31 - page % 32);
        const int hidden = __clz(static_cast<int>(word));  // pages
        if (hidden == 0) return block;
        block = (page / 32 * 32 + max(page % 32 - hidden, -1) + 1) * kBlocksAPage - 1;
      }
    }
    return block;
  }

  /// False where there is nothing to do.
  __device__ __forceinline__ bool Find(const PrefillParams& p) {
    splits = p.tiles->splits;
    const int count = p.tiles->count;
    item = static_cast<int>(blockIdx.x);
    head = item % p.num_kv_heads;
    const int share = item / p.num_kv_heads % splits, number = item / p.num_kv_heads / splits;
    if (number >= count) return false;
    const PrefillTile tile = p.tiles->tile[count - 1 - number];  // the last ones see most
    visible = p.visible ? p.visible + static_cast<int64_t>(count - 1 - number) * p.visible_words : nullptr;
    sequence = p.sequences[tile.sequence];
    first_row = tile.index * kPrefillRows;
    num_rows = sequence.new_len * p.gqa_ratio;
    const int last_row = min(first_row + kPrefillRows, num_rows) - 1;
    const int first_end = PrefillVisibleEnd(p, sequence, first_row / p.gqa_ratio), last_end = PrefillVisibleEnd(p, sequence, last_row / p.gqa_ratio);
    block_begin = PrefillVisibleBegin(p, first_end) / kBlock;
    block_end = max(block_begin, (last_end + kBlock - 1) / kBlock);
    plain_begin = (PrefillVisibleBegin(p, last_end) + kBlock - 1) / kBlock;
    plain_end = max(first_end, 0) / kBlock;
    const int64_t count_blocks = block_end - block_begin;
    block_end = block_begin + static_cast<int>(count_blocks * (share + 1) / splits);
    block_begin += static_cast<int>(count_blocks * share / splits);
    if (sequence.row_begin < 0) block_end = block_begin;  // no room in the workspace
    return true;
  }
};

template <int kDim, bool kSpecial>
struct PrefillAttend {
  static constexpr int kBlock = PrefillBlock(kDim);
  using Work = PrefillWork<kBlock>;
  static constexpr int kParts = kDim / 64;  // of 64 channels, 128 bytes a row
  static constexpr int kStages = kDim == 64 ? 4 : 2;
  static constexpr int kQueryBytes = kPrefillRows * kDim * 2;
  static constexpr int kTileBytes = kBlock * kDim * 2;
  static constexpr int kAlignment = 1024;
  static constexpr int kBarriers = 4 * kStages;
  static constexpr int kSharedBytes = kAlignment + kQueryBytes + 2 * kStages * kTileBytes + 8 * kBarriers;
  static constexpr int kQueryPart = kQueryBytes / kParts, kTilePart = kTileBytes / kParts;
  static constexpr int kEightRows = 8 * 128;
  static constexpr float kHidden = -__builtin_huge_valf();
  static constexpr int kTurnBarrier = 1, kQueryBarrier = kTurnBarrier + kPrefillConsumers;  // named, one a warpgroup

  struct Shared {
    uint32_t q, k, v, k_full, v_full, k_empty, v_empty;
    __device__ explicit Shared(uint32_t base) {
      q = (base + kAlignment - 1) / kAlignment * kAlignment;
      k = q + kQueryBytes;
      v = k + kStages * kTileBytes;
      k_full = v + kStages * kTileBytes;
      v_full = k_full + 8 * kStages;
      k_empty = v_full + 8 * kStages;
      v_empty = k_empty + 8 * kStages;
    }
  };
  /// Stage of the ring and parity of its phase, of the n-th block.
  struct Slot {
    int stage;
    uint32_t parity;
    __device__ explicit Slot(unsigned n) : stage(static_cast<int>(n % kStages)), parity(n / kStages & 1) {}
  };

  __device__ __forceinline__ static void NamedSync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
  __device__ __forceinline__ static void NamedArrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

  __device__ __forceinline__ static void CopyTile(const Work& work, const CUtensorMap* map, uint32_t to, uint32_t barrier, int block) {
    BarrierArriveExpect(barrier, kTileBytes);
#pragma unroll
    for (int h = 0; h < kParts; ++h)
      TensorCopy(to + h * kTilePart, map, 64 * h, work.sequence.row_begin + block * kBlock, work.head, barrier);
  }

  __device__ __forceinline__ static void Produce(const PrefillParams& p, const Shared& sm, const Work& work) {
    int block = work.template BlockBefore<kSpecial>(work.block_end);
    if (block < work.block_begin) return;
    const auto copy = [&](unsigned n, int at, const CUtensorMap* map, uint32_t ring, uint32_t full, uint32_t empty) {
      const Slot slot(n);
      BarrierWait(empty + 8 * slot.stage, slot.parity ^ 1);
      CopyTile(work, map, ring + slot.stage * kTileBytes, full + 8 * slot.stage, at);
    };
    copy(0, block, &p.k_map, sm.k, sm.k_full, sm.k_empty);
    for (unsigned n = 0; block >= work.block_begin; ++n) {  // keys run one block ahead of values
      const int next = work.template BlockBefore<kSpecial>(block);
      if (next >= work.block_begin) copy(n + 1, next, &p.k_map, sm.k, sm.k_full, sm.k_empty);
      copy(n, block, &p.v_map, sm.v, sm.v_full, sm.v_empty);
      block = next;
    }
  }

  /// A warpgroup and what a thread holds of its 64 rows; rows 0 and 1 of a thread are g and g + 8 of its warp's 16.
  struct Consumer {
    const PrefillParams& p;
    const Shared& sm;
    const Work& work;
    const int group;
    uint64_t q_matrix;
    float scale;  // of what stands in s, to log2
    float s[kBlock / 2];
    uint32_t weight[kBlock / 4];  // f16 pairs: operand A
    float out[kDim / 2];
    float top[2], sum[2];
    int visible_begin[2], visible_end[2];
    const uint16_t* mask_row[2];

    __device__ __forceinline__ int Row(int r) const {  // of the sequence
      return work.first_row + 64 * group + static_cast<int>(threadIdx.x % kWarpgroup / 32) * 16 + static_cast<int>(threadIdx.x % 32 / 4) + 8 * r;
    }

    __device__ __forceinline__ Consumer(const PrefillParams& p, const Shared& sm, const Work& work, int group) : p(p), sm(sm), work(work), group(group) {
      q_matrix = MatrixDescriptor(sm.q + group * 64 * 128, 0, kEightRows);
      scale = kSpecial ? 1.f : p.scale_log2;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = min(Row(r), work.num_rows - 1) / p.gqa_ratio;
        visible_end[r] = PrefillVisibleEnd(p, work.sequence, token);
        visible_begin[r] = PrefillVisibleBegin(p, visible_end[r]);
        if constexpr (kSpecial) mask_row[r] = p.mask + (work.sequence.new_begin + token) * p.mask_stride;
        top[r] = kHidden;
        sum[r] = 0;
      }
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[i] = 0;
    }

    /// The warpgroup's query rows to shared memory, f16.
    __device__ __forceinline__ void LoadQueries() const {
      constexpr int kChunks = kDim / 8;
      const int tid = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
      for (int i = tid; i < 64 * kChunks; i += kWarpgroup) {
        const int row = 64 * group + i / kChunks, chunk = i % kChunks, of_sequence = work.first_row + row;
        uint4 x{};
        if (of_sequence < work.num_rows) {
          const int token = of_sequence / p.gqa_ratio, head = work.head * p.gqa_ratio + of_sequence % p.gqa_ratio;
          x = __ldg(reinterpret_cast<const uint4*>(p.q + (work.sequence.new_begin + token) * p.q_stride + head * kDim + 8 * chunk));
          if (p.bf16) x = make_uint4(F16OfBf16(x.x), F16OfBf16(x.y), F16OfBf16(x.z), F16OfBf16(x.w));
        }
        const uint32_t to = sm.q + chunk / 8 * kQueryPart + row * 128 + ((chunk % 8) ^ (row & 7)) * 16;
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
      }
      FenceAsyncProxy();
      NamedSync(kQueryBarrier + group, kWarpgroup);
    }
    __device__ __forceinline__ static uint32_t F16OfBf16(uint32_t w) { return PackF16(LowBf16(w), HighBf16(w)); }

    // ---- products
    __device__ __forceinline__ void StartLogits(int stage) {
      const uint64_t k_matrix = MatrixDescriptor(sm.k + stage * kTileBytes, 0, kEightRows);
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const int q_at = i / 4 * kQueryPart + i % 4 * 32, k_at = i / 4 * kTilePart + i % 4 * 32;
        WarpgroupMma(s, q_matrix + (q_at >> 4), k_matrix + (k_at >> 4), i > 0);
      }
      WarpgroupCommit();
    }
    __device__ __forceinline__ void StartValues(int stage) {
      const uint64_t v_matrix = MatrixDescriptor(sm.v + stage * kTileBytes, kTilePart, kEightRows);
#pragma unroll
      for (int i = 0; i < kBlock / 16; ++i)
        WarpgroupMma(out, weight[4 * i], weight[4 * i + 1], weight[4 * i + 2], weight[4 * i + 3], v_matrix + (i * 16 * 128 >> 4));
      WarpgroupCommit();
    }

    // ---- softmax
    /// s becomes logits as the rows see them, -inf where they do not.
    __device__ __forceinline__ void Finish(int block) {
      const int column = 2 * static_cast<int>(threadIdx.x % 4), base = block * kBlock + column;
      if constexpr (kSpecial) {
        constexpr float kLog2E = 1.4426950408889634f;
#pragma unroll
        for (int i = 0; i < kBlock / 2; ++i) s[i] *= p.scale_log2;
        if (p.softcap_log2 > 0) {  // cap tanh(x / cap) = cap - 2 cap / (e^(2 x / cap) + 1)
          const float factor = 2 * kLog2E / p.softcap_log2;
#pragma unroll
          for (int i = 0; i < kBlock / 2; ++i)
            s[i] = p.softcap_log2 - __fdividef(2 * p.softcap_log2, fminf(Exp2(s[i] * factor), 1e30f) + 1);
        }
        if (p.mask) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int j = 0; j < kBlock / 8; ++j) {
              const uint32_t* at = reinterpret_cast<const uint32_t*>(mask_row[r] + base + 8 * j);
              const uint32_t pair = base + 8 * j < visible_end[r] ? __ldg(at) : 0;
              s[4 * j + 2 * r] = fmaf(kLog2E, LowF16(pair), s[4 * j + 2 * r]);
              s[4 * j + 2 * r + 1] = fmaf(kLog2E, HighF16(pair), s[4 * j + 2 * r + 1]);
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int begin = visible_begin[r] - base, end = visible_end[r] - base;
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (8 * j + e < begin || 8 * j + e >= end) s[4 * j + 2 * r + e] = kHidden;
          }
        }
      }
    }
    /// Logits to weights, in place; what the sums so far are to be multiplied with.
    __device__ __forceinline__ void Weigh(float (&factor)[2]) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = top[r];
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) most = fmaxf(most, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float base = most == kHidden ? 0 : most * scale;
        factor[r] = Exp2(fmaf(top[r], scale, -base));
        top[r] = most;
        float total = 0;
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[4 * j + 2 * r + e];
            x = Exp2(fmaf(x, scale, -base));
            total += x;
          }
        }
        sum[r] = fmaf(sum[r], factor[r], total);
      }
    }
    __device__ __forceinline__ void PackWeights() {
#pragma unroll
      for (int i = 0; i < kBlock / 4; ++i) weight[i] = PackF16(s[2 * i], s[2 * i + 1]);
    }
    __device__ __forceinline__ void Release(uint32_t barrier) const {
      if (threadIdx.x % 32 == 0) BarrierArrive(barrier);
    }

    /// Block number `n` (0: the last of the tile): its logits and weights, and the values of the block before it.
    template <bool kFinish>
    __device__ __forceinline__ void Step(unsigned n, int block) {
      const Slot now(n), last(n - 1);
      BarrierWait(sm.k_full + 8 * now.stage, now.parity);
      NamedSync(kTurnBarrier + group, kPrefillConsumers * kWarpgroup);
      WarpgroupFence();
      StartLogits(now.stage);
      BarrierWait(sm.v_full + 8 * last.stage, last.parity);
      StartValues(last.stage);
      NamedArrive(kTurnBarrier + (group ^ 1), kPrefillConsumers * kWarpgroup);
      WarpgroupWait<1>();
      HoldRegisters(s);
      Release(sm.k_empty + 8 * now.stage);
      if constexpr (kFinish) Finish(block);
      float factor[2];
      Weigh(factor);
      WarpgroupWait<0>();
      HoldRegisters(out);
      HoldRegisters(weight);
      Release(sm.v_empty + 8 * last.stage);
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[4 * j + e] *= factor[e / 2];
      }
      PackWeights();
    }

    __device__ __forceinline__ void Run() {
      int block = work.template BlockBefore<kSpecial>(work.block_end);
      if (block < work.block_begin) return;
      if (group == 1) NamedArrive(kTurnBarrier, kPrefillConsumers * kWarpgroup);
      LoadQueries();
      BarrierWait(sm.k_full, 0);
      WarpgroupFence();
      StartLogits(0);
      WarpgroupWait<0>();
      HoldRegisters(s);
      Release(sm.k_empty);
      Finish(block);
      float factor[2];
      Weigh(factor);
      PackWeights();
      unsigned n = 0;
      for (int next; (next = work.template BlockBefore<kSpecial>(block)) >= work.block_begin; block = next) {
        ++n;
        if (kSpecial || next >= work.plain_end || next < work.plain_begin) {
          Step<true>(n, next);
        } else {
          Step<false>(n, next);
        }
      }
      const Slot last(n);
      BarrierWait(sm.v_full + 8 * last.stage, last.parity);
      WarpgroupFence();
      StartValues(last.stage);
      WarpgroupWait<0>();
      HoldRegisters(out);
      if (group == 0) NamedSync(kTurnBarrier, kPrefillConsumers * kWarpgroup);  // the other's last hand-over
    }

    // ---- results
    __device__ __forceinline__ void Store() {
      const int column = 2 * static_cast<int>(threadIdx.x % 4);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        if (work.sequence.row_begin < 0) sum[r] = top[r] = __int_as_float(0x7fffffff);  // no room: NaN
        const int row = Row(r);
        if (row >= work.num_rows) continue;
        if (work.splits > 1) {
          const int64_t at = int64_t{work.item} * kPrefillRows + row - work.first_row;
          if (column == 0) *reinterpret_cast<float2*>(p.partial_lse + 2 * at) = make_float2(top[r] * scale, sum[r]);
          if (sum[r] == 0) continue;
#pragma unroll
          for (int j = 0; j < kDim / 8; ++j)
            *reinterpret_cast<float2*>(p.partial_out + at * kDim + 8 * j + column) = make_float2(out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
          continue;
        }
        const RowResult result(p, work, row, top[r] * scale, sum[r]);
        if (column == 0) result.StoreLse(p);
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          const float x = out[4 * j + 2 * r] * result.factor, y = out[4 * j + 2 * r + 1] * result.factor;
          *reinterpret_cast<uint32_t*>(result.Out(p) + 8 * j + column) = p.bf16 ? PackBf16(x, y) : PackF16(x, y);
        }
      }
    }
  };

  /// Where a finished row goes and what its sum of values is to be multiplied with.
  struct RowResult {
    int64_t token;
    int head;
    float factor, lse;

    __device__ __forceinline__ RowResult(const PrefillParams& p, const Work& work, int row, float top_log2, float sum) {
      constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
      token = work.sequence.new_begin + row / p.gqa_ratio;
      head = work.head * p.gqa_ratio + row % p.gqa_ratio;
      float weight = 1;
      if (p.sink_logits) {
        const float sink = p.sink_logits[head] * kLog2E, most = fmaxf(sink, top_log2);
        if (most != kHidden && sum == sum) {
          weight = Exp2(top_log2 - most);
          sum = fmaf(sum, weight, Exp2(sink - most));
          top_log2 = most;
        }
      }
      factor = sum == 0 ? 0 : __fdividef(weight, sum);
      lse = sum == 0 ? kHidden : (top_log2 + log2f(sum)) * kLn2;
    }
    __device__ __forceinline__ uint16_t* Out(const PrefillParams& p) const { return p.out + token * p.out_stride + head * kDim; }
    __device__ __forceinline__ void StoreLse(const PrefillParams& p) const {
      if (p.lse) p.lse[token * p.num_kv_heads * p.gqa_ratio + head] = lse;
    }
  };

  __device__ __forceinline__ static void Run(const PrefillParams& p) {
    extern __shared__ uint8_t memory[];
    const Shared sm(SharedAddress(memory));
    const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
    if (threadIdx.x == 0) {
      PrefetchTensorMap(&p.k_map);
      PrefetchTensorMap(&p.v_map);
      constexpr int kReaders = kPrefillConsumers * kWarpgroup / 32;
      for (int i = 0; i < kStages; ++i) {
        BarrierInit(sm.k_full + 8 * i, 1);
        BarrierInit(sm.v_full + 8 * i, 1);
        BarrierInit(sm.k_empty + 8 * i, kReaders);
        BarrierInit(sm.v_empty + 8 * i, kReaders);
      }
      FenceAsyncProxy();
    }
    WaitForLastKernel();
    LetNextKernelStart();
    Work work;
    if (!work.Find(p)) return;
    __syncthreads();
    if (group == 0) {
      GiveRegisters<24>();
      if (threadIdx.x == 0) Produce(p, sm, work);
    } else {
      TakeRegisters<240>();
      Consumer consumer(p, sm, work, group - 1);
      consumer.Run();
      consumer.Store();
    }
  }

  /// Joins the shares of each row in their order, a warp a row.
  __device__ __forceinline__ static void Merge(const PrefillParams& p) {
    const int splits = p.tiles->splits;
    if (splits == 1) return;
    const int64_t rows = int64_t{p.tiles->count} * p.num_kv_heads * kPrefillRows;
    const int warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    for (int64_t i = static_cast<int64_t>(blockIdx.x * blockDim.x + threadIdx.x) / 32; i < rows; i += warps) {
      const int head = static_cast<int>(i / kPrefillRows % p.num_kv_heads), number = static_cast<int>(i / kPrefillRows / p.num_kv_heads);
      MergeRow(p, splits, number, head, static_cast<int>(i % kPrefillRows));
    }
  }
  __device__ __forceinline__ static void MergeRow(const PrefillParams& p, int splits, int number, int head, int in_tile) {
    constexpr int kPerLane = kDim / 32;
    const PrefillTile tile = p.tiles->tile[p.tiles->count - 1 - number];
    Work work;
    work.sequence = p.sequences[tile.sequence];
    work.head = head;
    const int row = tile.index * kPrefillRows + in_tile, lane = static_cast<int>(threadIdx.x % 32);
    if (row >= work.sequence.new_len * p.gqa_ratio) return;
    float top = kHidden, sum = 0, out[kPerLane] = {};
    for (int i = 0; i < splits; ++i) {
      const int64_t part = (static_cast<int64_t>(number * splits + i) * p.num_kv_heads + head) * kPrefillRows + in_tile;
      const float2 state = *reinterpret_cast<const float2*>(p.partial_lse + 2 * part);
      if (state.y == 0) continue;
      const float most = fmaxf(top, state.x), old = Exp2(top - most), fresh = Exp2(state.x - most);
      sum = fmaf(sum, old, state.y * fresh);
      top = most;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) out[j] = fmaf(out[j], old, fresh * p.partial_out[part * kDim + kPerLane * lane + j]);
    }
    const RowResult result(p, work, row, top, sum);
    if (lane == 0) result.StoreLse(p);
#pragma unroll
    for (int j = 0; j < kPerLane; j += 2) {
      const float x = out[j] * result.factor, y = out[j + 1] * result.factor;
      *reinterpret_cast<uint32_t*>(result.Out(p) + kPerLane * lane + j) = p.bf16 ? PackBf16(x, y) : PackF16(x, y);
    }
  }
};

}  // namespace kvrazor::cuda

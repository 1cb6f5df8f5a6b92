// Stream-K schedule. A tile is one (sequence, kv head, block of query rows); its units are, in this order:
//   a unit a page below row_start, from the first that a sliding window leaves | the sink rows (if there are any) | a unit for 16 tokens from row_start on
// Tiles are laid end to end on a line, unit by unit, one position more a tile for its overhead; N CTAs take equal shares of it in
// order, one position more for the first of them where it does not come out even. A tile that crosses a border is merged from its parts.
// Everything is computed from kv_len and row_start on the device, so a captured graph follows new lengths.
#pragma once

#include <cstdint>

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/packed_page.h"

namespace kvrazor::cuda {

inline constexpr unsigned kLeastPositions = 4;   // a CTA: fewer would spend more on merging than on reading
inline constexpr unsigned kWholePositions = 16;  // tiles up to this size are not worth splitting at all

/// One sequence, as every warp of the CTA sees it (shared memory).
struct SequenceUnits {
  int32_t kv_len;
  int32_t first_page;  // those before it are out of the sliding window
  int32_t num_pages;   // units of whole pages
  uint32_t weight;     // positions of a tile, 0 if it has no unit
  uint32_t first;      // position of its first tile
};

struct LineInfo {      // of this CTA (shared memory)
  uint32_t share, longer, begin, end;
  int32_t sequence;    // that holds `begin`
};

struct Segment {
  int sequence, kv_head;
  int block, rows;             // of query rows
  int first_unit, num_units;   // of this CTA
  int tile_units;              // of the tile
  uint32_t tile_at;            // position of the tile
};

/// What the consumers are told of a segment (shared memory, beside its queries); num_units 0: there is none.
struct SegmentInfo {
  Segment segment;
  int32_t kv_len;
  int32_t is_last;  // of this CTA
};

enum class UnitKind : uint32_t { kPage, kRows, kWholeRowPage, kNothing };

/// Written by the producer before a stage is full.
struct StageInfo {
  const uint8_t* row_page;  // kWholeRowPage: this head's k rows
  UnitKind kind;
  uint32_t plain;           // every query row sees all tokens of the unit as they are
  int32_t base;             // first token in the sequence
  uint32_t tokens;          // first | last << 16; of the page, or 0 | tokens of the rows
};

/// Where a unit lies in the ring. A stage has two `full` barriers that take turns: a team that waits for a unit could pass one that
/// also counts the unit before it in the stage, of another team and perhaps still on its way, one phase early. Of the unit before
/// that one it cannot be wrong: the stage was emptied of it before the team's own last unit was fetched, if there are at least as many stages as teams.
struct RingCursor {
  int stage = 0;
  uint32_t round = 0;

  /// units <= num_stages
  __device__ void Advance(int units, int num_stages) {
    stage += units;
    if (stage >= num_stages) {
      stage -= num_stages;
      ++round;
    }
  }
  __device__ int FullBarrier() const { return stage + (round & 1) * kMaxStages; }
  __device__ uint32_t FullParity() const { return round >> 1 & 1; }
  __device__ uint32_t EmptyParity() const { return ~round & 1; }  // for the producer, who waits for every phase in turn
};

/// First position of a CTA; the first `longer` CTAs have one position more than `share`.
__device__ __forceinline__ uint32_t CtaBegin(uint32_t share, uint32_t longer, uint32_t cta) { return share * cta + min(cta, longer); }
/// The CTA that owns a position.
__device__ __forceinline__ int CtaOf(const LineInfo& line, uint32_t position) {
  const uint32_t border = line.longer * (line.share + 1);
  return static_cast<int>(position < border ? position / (line.share + 1) : line.longer + (position - border) / line.share);
}

/// Filled by one warp; lane in 0..31.
__device__ __forceinline__ void MakeSchedule(const AttendParams& a, SequenceUnits* sequences, LineInfo* line, int lane) {
  const uint32_t heads = a.num_kv_heads * a.num_blocks;
  uint32_t carry = 0, num_tiles = 0;
  const auto load = [&](const int32_t* from, int b) { return b < a.batch_size ? max(__ldg(from + b), 0) : 0; };
  int next_len = load(a.kv_len, lane), next_start = load(a.row_start, lane);  // one step ahead
  for (int base = 0; base < a.batch_size; base += 32) {
    const int b = base + lane, kv_len = next_len, row_start = next_start;
    next_len = load(a.kv_len, b + 32);
    next_start = load(a.row_start, b + 32);
    SequenceUnits s{};
    if (b < a.batch_size) {
      s.kv_len = min(kv_len, a.table_stride * kTokens);
      if (a.window > 0) s.first_page = max(s.kv_len - (a.causal ? a.qo_len - 1 : 0) - a.window, 0) / kTokens;
      s.num_pages = max(min(row_start / kTokens, (s.kv_len + kTokens - 1) / kTokens) - s.first_page, 0);
      const int rows = max(s.kv_len - (s.first_page + s.num_pages) * kTokens, 0);
      const int units = s.num_pages + (rows + kRowUnit - 1) / kRowUnit + (a.sink_tokens > 0);
      s.weight = s.kv_len > 0 ? units + 1 : 0;
    }
    uint32_t sum = s.weight * heads;
    const uint32_t own = sum;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const uint32_t other = __shfl_up_sync(~0u, sum, o);
      if (lane >= o) sum += other;
    }
    s.first = carry + sum - own;
    if (b < a.batch_size) sequences[b] = s;
    carry += __shfl_sync(~0u, sum, 31);
    num_tiles += __popc(__ballot_sync(~0u, s.weight > 0)) * heads;
  }
  const uint32_t total = carry;
  const uint32_t wanted = total <= kWholePositions * num_tiles ? num_tiles : total / kLeastPositions;
  const uint32_t num_ctas = max(1u, min(gridDim.x, wanted));
  const bool works = total > 0 && blockIdx.x < num_ctas;
  const uint32_t share = total / num_ctas, longer = total - share * num_ctas;
  const uint32_t begin = works ? CtaBegin(share, longer, blockIdx.x) : 0;
  const uint32_t end = works ? CtaBegin(share, longer, blockIdx.x + 1) : 0;
  if (lane == 0) *line = {share, longer, begin, end, 0};
  __syncwarp();
  for (int b = lane; b < a.batch_size; b += 32) {
    const SequenceUnits s = sequences[b];
    if (works && begin >= s.first && begin < s.first + s.weight * heads) line->sequence = b;
  }
}

/// Walks the segments of this CTA; every warp has its own and sees the same.
class Walk {
 public:
  __device__ Walk(const SequenceUnits* sequences, const LineInfo& line, const AttendParams& a)
      : sequences_(sequences), begin_(line.begin), end_(line.end), heads_(a.num_kv_heads * a.num_blocks), num_blocks_(a.num_blocks), block_rows_(a.block_rows), total_rows_(a.qo_len * a.gqa_ratio),
        sequence_(line.sequence) {
    if (begin_ < end_) {
      const SequenceUnits s = sequences_[sequence_];
      head_ = (begin_ - s.first) / s.weight;
      tile_at_ = s.first + head_ * s.weight;
    } else {
      tile_at_ = end_;
    }
  }

  __device__ bool Next(Segment& segment) {
    while (tile_at_ < end_) {
      const uint32_t weight = sequences_[sequence_].weight;
      const int units = static_cast<int>(weight) - 1;
      const int from = static_cast<int>(begin_ - tile_at_) - 1;  // units before this CTA's share, may be negative
      const int to = static_cast<int>(end_ - tile_at_) - 1;
      segment = {sequence_, head_, 0, total_rows_, max(from, 0), 0, units, tile_at_};
      if (num_blocks_ > 1) {
        segment.kv_head = head_ / num_blocks_;
        segment.block = head_ - segment.kv_head * num_blocks_;
        segment.rows = min(block_rows_, total_rows_ - segment.block * block_rows_);
      }
      segment.num_units = min(units, max(to, 0)) - segment.first_unit;
      tile_at_ += weight;
      if (++head_ == heads_) {
        head_ = 0;
        do ++sequence_;
        while (tile_at_ < end_ && sequences_[sequence_].weight == 0);
      }
      if (segment.num_units > 0) return true;
    }
    return false;
  }

  /// No segment follows the last one. A tile's first position is its overhead, so a single one left holds no unit.
  __device__ bool IsLast() const { return tile_at_ + 1 >= end_; }

 private:
  const SequenceUnits* sequences_;
  uint32_t begin_, end_, tile_at_ = 0;
  int heads_, num_blocks_, block_rows_, total_rows_, sequence_, head_ = 0;
};

}  // namespace kvrazor::cuda

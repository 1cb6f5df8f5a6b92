// How one attention call is cut into tasks, and the memory of a task. No SIMD here: compiled once.
#pragma once

#include <cstdint>

#include "src/backends/cpu/attend_scratch.h"
#include "src/ops/attend.h"
#include "src/ops/backend.h"

namespace kvrazor::cpu {

/// Bytes between the high and the low bytes of an operand row, and values between rows of per-pass scratch: the longest
/// summed dimension. A constant, so that kernels address all rows of a pass from one pointer.
inline constexpr int kMaxK = 256;
/// Rows that share one decode of the codes, at most (kernels of narrower registers take fewer).
inline constexpr int kMaxPassRows = 6;

/// A task = (kv head, row block, split): some query rows that share a kv head against a run of pages.
/// Row r of a block is query token block * block_tokens + r / gqa_ratio, query head kv_head * gqa_ratio + r % gqa_ratio.
struct AttendPlan {
  int num_kv_heads = 0;
  int gqa_ratio = 0;
  int key_dim = 0;
  int value_dim = 0;
  int qo_len = 0;
  int block_tokens = 0;
  int num_blocks = 0;
  int num_splits = 0;
  int64_t num_pages = 0;

  int block_rows() const { return block_tokens * gqa_ratio; }
  int64_t num_groups() const { return int64_t{num_kv_heads} * num_blocks; }
  int64_t num_tasks() const { return num_groups() * num_splits; }
  int64_t first_page(int split) const { return num_pages * split / num_splits; }
  int tokens_in_block(int block) const {
    const int left = qo_len - block * block_tokens;
    return left < block_tokens ? left : block_tokens;
  }
};

/// Throws Error if no kernel has the shape. Depends on the arguments only, never on the number of threads: the order of
/// every sum, and so the result, is the same for any executor.
AttendPlan PlanAttend(const AttendArgs& args);

/// The queries of one row block, in every form that its pages may ask for.
struct QueryBlock {
  float* plain = nullptr;     // [rows][key_dim]
  float* sealed = nullptr;    // [rows][key_dim] in the basis of sealed keys; plain itself if the recipe does not rotate
  int8_t* operand = nullptr;  // [rows][2][kMaxK] sealed in fixed point; only if the codec uses the query as it is
  float* operand_scale = nullptr;  // [rows]
  float* operand_sum = nullptr;    // [rows] sum of the operand, in units of q
  float* group_sum = nullptr;      // [rows][kMaxK / 32] sums of `sealed` over groups of channels

  static QueryBlock Carve(Carver& carver, const AttendPlan& plan);
};

/// What attention over a run of pages leaves behind: softmax in base 2 without the division.
struct PartialBlock {
  float* out = nullptr;  // [rows][value_dim] sum of 2^(logit - top) * value, in the basis of sealed values
  float* top = nullptr;  // [rows] largest logit * log2(e), -inf if no key was seen
  float* sum = nullptr;  // [rows] sum of 2^(logit - top)

  static PartialBlock Carve(Carver& carver, const AttendPlan& plan);
};

/// Scratch of a task beside the two above.
struct TaskScratch {
  float* out_plain = nullptr;    // [rows][value_dim] the part of 16-bit rows, not rotated
  float* logits = nullptr;       // [kMaxPassRows][128], then probabilities
  float* panel = nullptr;        // 16-bit keys transposed [key_dim][128]; f16 or f32
  float* value_panel = nullptr;  // 16-bit values as f32 [128][value_dim]
  // Parameters of one head of a page as f32.
  float* key_mean = nullptr;         // [key_dim] razor
  float* key_scale = nullptr;        // [128] razor
  float* key_mean_factor = nullptr;  // [128] razor, rank-one mean
  float* value_centre = nullptr;     // [token groups][value_dim] razor, in units of the scale
  float* value_scale = nullptr;      // [token groups][value_dim] razor
  float* value_norm = nullptr;       // [128] razor
  float* token_scale = nullptr;      // [128]
  float* scaled = nullptr;           // [kMaxPassRows][kMaxK] operand before it is rounded
  int8_t* operand = nullptr;         // [kMaxPassRows][2][kMaxK]
  int32_t* dots = nullptr;           // [kMaxPassRows][kMaxK]
  uint8_t* token_state = nullptr;    // [block_tokens] see TokenState

  static TaskScratch Carve(Carver& carver, const AttendPlan& plan);
};

/// What the tasks of one call share when pages are split: queries and partial results, in the caller's memory.
struct SplitScratch {
  QueryBlock* queries = nullptr;  // [groups]
  PartialBlock* parts = nullptr;  // [groups][splits]

  static SplitScratch Carve(Carver& carver, const AttendPlan& plan);
};

/// What a task needs that does a row block from queries to output.
struct BlockScratch {
  QueryBlock queries;
  PartialBlock part;
  TaskScratch task;

  static BlockScratch Carve(Carver& carver, const AttendPlan& plan);
};

/// The most that Attend ever takes for a layer of this shape, whatever the chunks and the number of pages.
WorkspaceBytes AttendWorkspace(const LayerFormat& format, int num_qo_heads);

}  // namespace kvrazor::cpu

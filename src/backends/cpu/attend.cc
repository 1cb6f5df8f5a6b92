// Attention over pages of packed keys and values and 16-bit rows, for a few new tokens (decode) or many (prefill).
//
//   task = (kv head, row block, split of the pages)
//     queries: copy, rotate, fixed point                                      once per block
//     page:    parameters to f32, 16-bit keys transposed                      once per page and block
//       pass of up to 6 rows:  logits > mask, softmax in base 2 > weighted values into f32 accumulators
//     end:     16-bit part rotated into the basis of the sealed part, so that a task leaves one partial result
//   join: partials of the splits merged, divided, rotated back
//
// The codes are never turned into values: scales go into the operands or onto the integer sums (sealed_dot-inl.h), and all
// query heads of a kv head share one decode of the codes. Splits depend on the shape alone: results are the same for any
// number of threads. Scratch memory is per thread and only grows.
//
// Cycles of one core per page and kv head, head_dim 64, 4 query heads, AVX3_DL, one byte product (64 products) a port and cycle:
//                        predicted                                          measured
//   integer products     2 sides x 32 rows x (32 vpdpbusd + 7) / 2 = 1250   ~ half of the time (profile)
//   softmax, operand p   ~ 450                                              ~ a quarter; parameters and epilogues the rest
//   razor-2              1700                                               3000
//   oscar                2900 (operands q * scale, p * scale: + 1100)       4400
// Measured: CPU seconds at 8192 tokens, 192 of them in 16 bits (subtracted), times the nominal 2.6 GHz, with other programs
// on both cores (Xeon, family 6 model 167). Asking for the next page's head ahead of time took a quarter off (razor-2 1100 to
// 830 us, the whole attention of 8 kv heads). 16-bit pages wait for memory: their rows lie a token apart; asking for rows 32
// tokens ahead took a third off.
// attend_bench --threads 1 --cpu-time, kv_len 8192, times ggml 0.25.3 built for AVX-512 without its FP16 instructions (with
// them, as -march=native has it on such a machine, its f16 attention is 2x slower at head_dim 64, 1.3x faster at 128):
//   head_dim 64, gqa 3 / 4 / 8    razor-2 25x / 26x / 23x    oscar 18x / 19x / 16x    f16 3.8x / 4.0x / 5.1x
//   head_dim 128                  razor-2 27x / 27x / 24x    oscar 20x / 20x / 19x    f16 3.5x / 4.1x / 5.3x
//   512 new tokens over 8192, head_dim 64, gqa 3:  razor-2 4.2x (151 GFLOP/s)  oscar 3.4x  f16 2.9x   ggml 35 GFLOP/s
#include "src/backends/cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/backends/cpu/attend_plan.h"

#define HWY_WANT_AVX3_DL  // byte dot products
// The fallback target is EMU128 with every compiler: GCC before 12.3 miscompiles its high-half multiplications (PR 106322),
// which are not used here, and HWY_SCALAR has no vectors to shuffle.
#define HWY_BROKEN_EMU128 0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/attend.cc"
#include "hwy/foreach_target.h"

// After foreach_target, which sets the target:
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "src/backends/cpu/attend_keys-inl.h"
#include "src/backends/cpu/attend_values-inl.h"
#include "src/backends/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Everything a task knows.
struct Task {
  const AttendArgs& args;
  const AttendPlan& plan;
  const QueryBlock& q;
  const LogitRule rule;
  TaskScratch& scratch;
  PartialBlock& part;
  int kv_head = 0;
  int block = 0;
  int num_rows = 0;
  bool has_plain = false;  // 16-bit values were added

  Task(const AttendArgs& a, const AttendPlan& p, const QueryBlock& queries, TaskScratch& s, PartialBlock& out, int head,
       int b)
      : args(a),
        plan(p),
        q(queries),
        rule(MakeLogitRule(a)),
        scratch(s),
        part(out),
        kv_head(head),
        block(b),
        num_rows(p.tokens_in_block(b) * p.gqa_ratio) {}

  int token_of(int row) const { return block * plan.block_tokens + row / plan.gqa_ratio; }
  int head_of(int row) const { return kv_head * plan.gqa_ratio + row % plan.gqa_ratio; }
};

/// Fills token_state; true if any row sees the page.
HWY_INLINE bool LookAtPage(Task& task, const AttendPage& page) {
  bool any = false;
  const int first = task.block * task.plan.block_tokens;
  for (int i = 0; i < task.plan.tokens_in_block(task.block); ++i) {
    task.scratch.token_state[i] = StateOfRow(MaskOfRow(task.args, page, first + i), page.num_tokens);
    any |= task.scratch.token_state[i] != kHidden;
  }
  return any;
}

/// First and last token that any row of the pass gives weight: [first, end).
HWY_INLINE void WeightedTokens(const float* p, int num_rows, int num_tokens, int& first, int& end) {
  const auto used = [&](int t) HWY_ATTR {
    for (int r = 0; r < num_rows; ++r) {
      if (p[r * kPageTokens + t] != 0) return true;
    }
    return false;
  };
  first = 0;
  end = num_tokens;
  while (end > first && !used(end - 1)) --end;
  while (first < end && !used(first)) ++first;
}

/// One pass: rows row .. row + kRows - 1 of the block against one page.
template <int kRows>
HWY_NOINLINE void AttendPass(Task& task, const AttendPage& page, int row) {
  TaskScratch& scratch = task.scratch;
  const int dim = task.plan.value_dim;
  PageLogits<kRows>(task.args.format->k, page.k, page.num_tokens, task.kv_head, task.num_rows, task.q, row, scratch);
  bool all_open = page.num_tokens == kPageTokens;
  bool any_seen = false;
  for (int r = 0; r < kRows; ++r) {
    float* x = scratch.logits + r * kPageTokens;
    const int token = task.token_of(row + r);
    const bool mixed = scratch.token_state[token - task.block * task.plan.block_tokens] != kOpen;
    const float slope = task.args.alibi_slopes ? task.args.alibi_slopes[task.head_of(row + r)] : 1.0f;
    const RowMask mask = mixed ? MaskOfRow(task.args, page, token) : RowMask{};
    const float top = FinishLogits(x, page.num_tokens, task.rule, mixed, mask, slope * kLog2E);
    all_open = all_open && !mixed;
    float& old_top = task.part.top[row + r];
    if (top > old_top) {
      if (old_top != kNoLogit) {
        const float factor = Exp2One(old_top - top);
        task.part.sum[row + r] *= factor;
        ScaleRow(task.part.out + int64_t{row + r} * dim, dim, factor);
        if (task.has_plain) ScaleRow(scratch.out_plain + int64_t{row + r} * dim, dim, factor);
      }
      old_top = top;
    }
    if (old_top == kNoLogit) {
      for (int t = 0; t < kPageTokens; t += kLanes) hn::Store(hn::Zero(TagF32()), TagF32(), x + t);
    } else {
      task.part.sum[row + r] += Exponentiate(x, old_top);
      any_seen = true;
    }
  }
  if (!any_seen) return;
  int first = 0, end = page.num_tokens;
  if (!all_open) WeightedTokens(scratch.logits, kRows, page.num_tokens, first, end);
  if (first >= end) return;
  AddValues<kRows>(task.args.format->v, page.v, first, end, task.kv_head, task.num_rows, scratch,
                   task.part.out + int64_t{row} * dim, scratch.out_plain + int64_t{row} * dim);
}

HWY_INLINE void AttendRows(Task& task, const AttendPage& page, int row, int num_rows) {
  switch (num_rows) {
    case 1: return AttendPass<1>(task, page, row);
    case 2: return AttendPass<2>(task, page, row);
    case 3: return AttendPass<3>(task, page, row);
    case 4: return AttendPass<4>(task, page, row);
    default: break;
  }
  if constexpr (kPassRows == 6) {
    if (num_rows == 5) return AttendPass<5>(task, page, row);
    return AttendPass<6>(task, page, row);
  }
}

/// Asks for a sealed head of the next page: heads lie too far apart for hardware prefetchers to follow. (16-bit rows are left
/// to them: asking for all their lines at once takes longer than it saves.)
HWY_INLINE void PrefetchSealed(const PageLayout& layout, const PageSide& side, int kv_head) {
  if (!side.sealed) return;
  const std::byte* block = side.sealed + layout.heads_at + layout.head_bytes * kv_head;
  for (int64_t i = 0; i < layout.head_bytes; i += kScratchAlign) hwy::Prefetch(block + i);
}

HWY_INLINE void AttendOnePage(Task& task, const AttendPage& page, const AttendPage* next) {
  if (!LookAtPage(task, page)) return;
  if (next && task.num_rows < kRowsForF32Panel) {  // many rows compute for so long that waiting does not matter
    PrefetchSealed(task.args.format->k, next->k, task.kv_head);
    PrefetchSealed(task.args.format->v, next->v, task.kv_head);
  }
  TaskScratch& scratch = task.scratch;
  const int64_t values = int64_t{task.num_rows} * task.plan.value_dim;
  if (!task.has_plain && (page.v.rows || page.v.exact.Any())) {
    std::fill_n(scratch.out_plain, values, 0.0f);
    task.has_plain = true;
  }
  PrepareKeyPage(task.args.format->k, page.k, page.num_tokens, task.kv_head, task.num_rows, scratch);
  PrepareValuePage(task.args.format->v, page.v, page.num_tokens, task.kv_head, task.num_rows, scratch);
  for (int row = 0; row < task.num_rows;) {
    const int rows = RowsOfPass(task.num_rows - row);
    bool hidden = true;
    for (int r = row; r < row + rows; ++r) hidden = hidden && scratch.token_state[r / task.plan.gqa_ratio] == kHidden;
    if (!hidden) AttendRows(task, page, row, rows);
    row += rows;
  }
}

/// Pages [first, last) for one row block.
void RunTask(const AttendArgs& args, const AttendPlan& plan, const QueryBlock& q, int kv_head, int block, int64_t first,
             int64_t last, TaskScratch& scratch, PartialBlock& part) {
  Task task(args, plan, q, scratch, part, kv_head, block);
  const int dim = plan.value_dim;
  std::fill_n(part.out, int64_t{task.num_rows} * dim, 0.0f);
  std::fill_n(part.top, task.num_rows, kNoLogit);
  std::fill_n(part.sum, task.num_rows, 0.0f);
  for (int64_t page = first; page < last; ++page) {
    AttendOnePage(task, args.pages[page], page + 1 < last ? &args.pages[page + 1] : nullptr);
  }
  if (!task.has_plain) return;
  HWY_ALIGN float rotated[kMaxK];
  for (int r = 0; r < task.num_rows; ++r) {
    const float* plain = scratch.out_plain + int64_t{r} * dim;
    float* out = part.out + int64_t{r} * dim;
    const float* add = plain;
    if (args.format->v.recipe.rotate) {
      RotateRow(plain, dim, rotated);
      add = rotated;
    }
    for (int c = 0; c < dim; c += kLanes)
      hn::Store(hn::Add(hn::Load(TagF32(), out + c), hn::Load(TagF32(), add + c)), TagF32(), out + c);
  }
}

/// Merges the partials of one row block and writes its outputs. parts [num_parts]; the first is overwritten.
void JoinBlock(const AttendArgs& args, const AttendPlan& plan, int kv_head, int block, PartialBlock* parts,
               int num_parts) {
  const TagF32 d;
  const int dim = plan.value_dim;
  HWY_ALIGN float rotated[kMaxK];
  const int num_rows = plan.tokens_in_block(block) * plan.gqa_ratio;
  for (int r = 0; r < num_rows; ++r) {
    const int64_t token = int64_t{block} * plan.block_tokens + r / plan.gqa_ratio;
    const int64_t head = int64_t{kv_head} * plan.gqa_ratio + r % plan.gqa_ratio;
    const float sink = args.sink_logits ? args.sink_logits[head] * kLog2E : kNoLogit;
    float top = sink;
    for (int s = 0; s < num_parts; ++s) top = std::max(top, parts[s].top[r]);
    float* out = parts[0].out + int64_t{r} * dim;
    float sum = sink == kNoLogit ? 0.0f : Exp2One(sink - top);
    for (int s = 0; s < num_parts; ++s) {
      const float factor = parts[s].top[r] == kNoLogit ? 0.0f : Exp2One(parts[s].top[r] - top);
      sum += factor * parts[s].sum[r];
      const auto f = hn::Set(d, factor);
      const float* from = parts[s].out + int64_t{r} * dim;
      for (int c = 0; c < dim; c += kLanes) {
        const auto x = hn::Mul(hn::Load(d, from + c), f);
        hn::Store(s == 0 ? x : hn::Add(hn::Load(d, out + c), x), d, out + c);
      }
    }
    ScaleRow(out, dim, sum > 0 ? 1.0f / sum : 0.0f);
    if (args.format->v.recipe.rotate) {
      RotateRow(out, dim, rotated);
      out = rotated;
    }
    float* to = args.out.data + token * args.out.token_stride + head * args.out.head_stride;
    for (int c = 0; c < dim; c += kLanes) hn::StoreU(hn::Load(d, out + c), d, to + c);
    if (args.lse) {
      args.lse[token * args.num_qo_heads + head] =
          sum > 0 ? (top + std::log2(sum)) * std::numbers::ln2_v<float> : kNoLogit;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {
namespace {

HWY_EXPORT(PrepareQueries);
HWY_EXPORT(RunTask);
HWY_EXPORT(JoinBlock);

// Two buffers a thread: what a call shares between its tasks lies in the caller's, and the caller runs tasks too.
thread_local ScratchBuffer shared_buffer;
thread_local ScratchBuffer task_buffer;

/// Few row blocks: their pages are split, and queries and partial results are shared between tasks.
void AttendSplit(const AttendArgs& args, const AttendPlan& plan, Executor& executor) {
  Carver measure(nullptr);
  SplitScratch::Carve(measure, plan);
  Carver carver(shared_buffer.Reserve(measure.used_bytes()));
  const SplitScratch memory = SplitScratch::Carve(carver, plan);

  // Preparing and joining a few rows takes less time than waking a thread.
  constexpr int64_t kFewValues = int64_t{1} << 16;
  const int64_t query_values = plan.num_groups() * plan.block_rows() * plan.key_dim;
  const int64_t part_values = plan.num_tasks() * plan.block_rows() * plan.value_dim;
  Executor& preparing = query_values < kFewValues ? SerialExecutor() : executor;
  Executor& joining = part_values < kFewValues ? SerialExecutor() : executor;

  preparing.Run(plan.num_groups(), [&](int64_t group, int) {
    HWY_DYNAMIC_DISPATCH(PrepareQueries)
    (args, plan, static_cast<int>(group / plan.num_blocks), static_cast<int>(group % plan.num_blocks),
     memory.queries[group]);
  });
  executor.Run(plan.num_tasks(), [&](int64_t index, int) {
    Carver task_measure(nullptr);
    TaskScratch::Carve(task_measure, plan);
    Carver task_carver(task_buffer.Reserve(task_measure.used_bytes()));
    TaskScratch scratch = TaskScratch::Carve(task_carver, plan);
    const int64_t group = index / plan.num_splits;
    const int split = static_cast<int>(index % plan.num_splits);
    HWY_DYNAMIC_DISPATCH(RunTask)
    (args, plan, memory.queries[group], static_cast<int>(group / plan.num_blocks),
     static_cast<int>(group % plan.num_blocks), plan.first_page(split), plan.first_page(split + 1), scratch,
     memory.parts[index]);
  });
  joining.Run(plan.num_groups(), [&](int64_t group, int) {
    HWY_DYNAMIC_DISPATCH(JoinBlock)
    (args, plan, static_cast<int>(group / plan.num_blocks), static_cast<int>(group % plan.num_blocks),
     memory.parts + group * plan.num_splits, plan.num_splits);
  });
}

/// Enough row blocks for everybody: a task does one from queries to output.
void AttendBlocks(const AttendArgs& args, const AttendPlan& plan, Executor& executor) {
  executor.Run(plan.num_groups(), [&](int64_t group, int) {
    Carver measure(nullptr);
    BlockScratch::Carve(measure, plan);
    Carver carver(task_buffer.Reserve(measure.used_bytes()));
    BlockScratch memory = BlockScratch::Carve(carver, plan);
    const int kv_head = static_cast<int>(group / plan.num_blocks);
    const int block = static_cast<int>(group % plan.num_blocks);
    HWY_DYNAMIC_DISPATCH(PrepareQueries)(args, plan, kv_head, block, memory.queries);
    HWY_DYNAMIC_DISPATCH(RunTask)
    (args, plan, memory.queries, kv_head, block, 0, plan.num_pages, memory.task, memory.part);
    HWY_DYNAMIC_DISPATCH(JoinBlock)(args, plan, kv_head, block, &memory.part, 1);
  });
}

}  // namespace

void Attend(const AttendArgs& args, Executor& executor) {
  const AttendPlan plan = PlanAttend(args);
  if (plan.num_groups() == 0) return;
  if (plan.num_splits > 1) {
    AttendSplit(args, plan, executor);
  } else {
    AttendBlocks(args, plan, executor);
  }
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE

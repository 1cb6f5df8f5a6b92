#include "src/backends/cpu/attend_plan.h"

#include <algorithm>
#include <string>

#include "kvrazor/error.h"

namespace kvrazor::cpu {
namespace {

/// Query rows of a block: enough that preparing a page's 16-bit rows for them costs little, few enough for the L2 cache.
constexpr int kBlockRows = 64;
/// Fewer tasks than this are split over pages. Well above the threads of a machine this backend is meant for.
constexpr int64_t kWantedTasks = 64;
constexpr int64_t kMinPagesOfSplit = 4;
/// Groups of tokens with parameters of their own, at most (groups of 32).
constexpr int64_t kMaxTokenGroups = kPageTokens / 32;

void CheckDim(const PageLayout& layout, const char* what) {
  const int dim = layout.shape.head_dim;
  if (layout.recipe.codec == Codec::kF16 ? dim % 32 == 0 : dim <= kMaxK) return;
  throw Error(std::string("attend: no CPU kernel for ") + what + " of head_dim=" + std::to_string(dim) +
              "; 16-bit layers need a multiple of 32, packed ones 32, 64, 128 or 256. Leave this layer to the host's "
              "own attention.");
}

AttendPlan PlanShape(const LayerFormat& format, int num_qo_heads, int qo_len, int64_t num_pages) {
  CheckDim(format.k, "keys");
  CheckDim(format.v, "values");
  AttendPlan plan;
  plan.num_kv_heads = format.k.shape.num_kv_heads;
  plan.gqa_ratio = num_qo_heads / plan.num_kv_heads;
  plan.key_dim = format.k.shape.head_dim;
  plan.value_dim = format.v.shape.head_dim;
  plan.qo_len = qo_len;
  plan.num_pages = num_pages;
  plan.block_tokens = std::clamp(kBlockRows / plan.gqa_ratio, 1, std::max(1, qo_len));
  plan.num_blocks = (qo_len + plan.block_tokens - 1) / plan.block_tokens;
  const int64_t groups = std::max<int64_t>(1, plan.num_groups());
  const int64_t wanted = (kWantedTasks + groups - 1) / groups;
  plan.num_splits = static_cast<int>(std::clamp<int64_t>(plan.num_pages / kMinPagesOfSplit, 1, wanted));
  return plan;
}

}  // namespace

AttendPlan PlanAttend(const AttendArgs& args) {
  return PlanShape(*args.format, args.num_qo_heads, args.qo_len, static_cast<int64_t>(args.pages.size()));
}

QueryBlock QueryBlock::Carve(Carver& carver, const AttendPlan& plan) {
  const int64_t rows = plan.block_rows();
  QueryBlock q;
  q.plain = carver.Take<float>(rows * plan.key_dim);
  q.sealed = carver.Take<float>(rows * plan.key_dim);
  q.operand = carver.Take<int8_t>(rows * 2 * kMaxK);
  q.operand_scale = carver.Take<float>(rows);
  q.operand_sum = carver.Take<float>(rows);
  q.group_sum = carver.Take<float>(rows * (kMaxK / 32));
  return q;
}

PartialBlock PartialBlock::Carve(Carver& carver, const AttendPlan& plan) {
  const int64_t rows = plan.block_rows();
  PartialBlock p;
  p.out = carver.Take<float>(rows * plan.value_dim);
  p.top = carver.Take<float>(rows);
  p.sum = carver.Take<float>(rows);
  return p;
}

TaskScratch TaskScratch::Carve(Carver& carver, const AttendPlan& plan) {
  TaskScratch s;
  s.out_plain = carver.Take<float>(int64_t{plan.block_rows()} * plan.value_dim);
  s.logits = carver.Take<float>(kMaxPassRows * kPageTokens);
  s.panel = carver.Take<float>(int64_t{plan.key_dim} * kPageTokens);
  s.value_panel = carver.Take<float>(int64_t{plan.value_dim} * kPageTokens);
  s.key_mean = carver.Take<float>(plan.key_dim);
  s.key_scale = carver.Take<float>(kPageTokens);
  s.key_mean_factor = carver.Take<float>(kPageTokens);
  s.value_centre = carver.Take<float>(int64_t{plan.value_dim} * kMaxTokenGroups);
  s.value_scale = carver.Take<float>(int64_t{plan.value_dim} * kMaxTokenGroups);
  s.value_norm = carver.Take<float>(kPageTokens);
  s.token_scale = carver.Take<float>(kPageTokens);
  s.scaled = carver.Take<float>(kMaxPassRows * kMaxK);
  s.operand = carver.Take<int8_t>(kMaxPassRows * 2 * kMaxK);
  s.dots = carver.Take<int32_t>(kMaxPassRows * kMaxK);
  s.token_state = carver.Take<uint8_t>(plan.block_tokens);
  return s;
}

SplitScratch SplitScratch::Carve(Carver& carver, const AttendPlan& plan) {
  SplitScratch m;
  m.queries = carver.Take<QueryBlock>(plan.num_groups());
  m.parts = carver.Take<PartialBlock>(plan.num_tasks());
  for (int64_t i = 0; i < plan.num_groups(); ++i) {
    const QueryBlock q = QueryBlock::Carve(carver, plan);
    if (m.queries) m.queries[i] = q;
  }
  for (int64_t i = 0; i < plan.num_tasks(); ++i) {
    const PartialBlock p = PartialBlock::Carve(carver, plan);
    if (m.parts) m.parts[i] = p;
  }
  return m;
}

BlockScratch BlockScratch::Carve(Carver& carver, const AttendPlan& plan) {
  BlockScratch m;
  m.queries = QueryBlock::Carve(carver, plan);
  m.part = PartialBlock::Carve(carver, plan);
  m.task = TaskScratch::Carve(carver, plan);
  return m;
}

WorkspaceBytes AttendWorkspace(const LayerFormat& format, int num_qo_heads) {
  WorkspaceBytes most;
  // Pages are split while there are fewer row blocks than wanted tasks: the chunks that could need the most are those
  // with whole row blocks, up to one block beyond that point. More blocks only mean more tasks of the same size.
  constexpr int64_t kManyPages = kWantedTasks * kMinPagesOfSplit;
  const AttendPlan one = PlanShape(format, num_qo_heads, kBlockRows, kManyPages);
  for (int blocks = 0; int64_t{blocks} * one.num_kv_heads <= kWantedTasks + one.num_kv_heads; ++blocks) {
    const AttendPlan plan = PlanShape(format, num_qo_heads, std::max(1, blocks * one.block_tokens), kManyPages);
    Carver shared(nullptr), task(nullptr);
    if (plan.num_splits > 1) {
      SplitScratch::Carve(shared, plan);
      TaskScratch::Carve(task, plan);
    } else {
      BlockScratch::Carve(task, plan);
    }
    most.shared = std::max(most.shared, shared.used_bytes());
    most.per_thread = std::max(most.per_thread, task.used_bytes());
  }
  // A single page is never split, however few the rows.
  Carver whole(nullptr);
  BlockScratch::Carve(whole, PlanShape(format, num_qo_heads, one.block_tokens, 1));
  most.per_thread = std::max(most.per_thread, whole.used_bytes());
  return most;
}

}  // namespace kvrazor::cpu

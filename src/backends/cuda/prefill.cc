#include "src/backends/cuda/prefill.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/plan_op.h"
#include "src/backends/cuda/prefill_params.h"

namespace kvrazor::cuda {
namespace {

constexpr int kMaxNewTokens = 1 << 20;
constexpr int kMaxDequantizeJobs = 65535;  // of a launch
constexpr int64_t kAlignment = 256;        // of a part of the workspace
constexpr int kPartialsPerSm = 4;          // shares of tiles that there is room for

constexpr PlanOp kOp{"prefill"};

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

const PrefillSpec& Checked(const PrefillSpec& s, const Device& device) {
  const PackedFormat& f = s.format;
  if (device.compute_major != 9) {
    kOp.Refuse("no kernel for " + device.name + " (compute capability " + Text(device.compute_major) +
               ".x); this build has 9.0. Dequantize the pages and use another attention, or choose the cpu backend.");
  }
  if (f.head_dim != 64 && f.head_dim != 128 && f.head_dim != 256) {
    kOp.Refuse(
        "head_dim=" + Text(f.head_dim) +
        "; possible are 64, 128 and 256. Dequantize the pages and use another attention, or choose the cpu backend.");
  }
  kOp.CheckAttention(s);
  if (s.max_new_tokens < 1 || s.max_new_tokens > kMaxNewTokens) {
    kOp.Refuse("max_new_tokens=" + Text(s.max_new_tokens) + "; possible are 1 to " + Text(kMaxNewTokens) +
               ". Take the prompt in smaller chunks.");
  }
  if (int64_t{s.max_pages} * kTokens + s.max_new_tokens > INT32_MAX) {
    kOp.Refuse("max_pages=" + Text(s.max_pages) + " is too large: tokens of a sequence are 32-bit numbers.");
  }
  if (s.workspace_tokens < 0) kOp.Refuse("workspace_tokens must not be negative; 0 is room for everything.");
  return s;
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// The driver's function, found through the runtime: nothing links against the driver.
EncodeTiled FindEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  constexpr unsigned kSinceCuda = 12000;
  kOp.Check(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceCuda, cudaEnableDefault, &result),
      "tensor maps");
  if (result != cudaDriverEntryPointSuccess) kOp.Refuse("the driver has no tensor maps; CUDA 12.0 or later is needed.");
  return reinterpret_cast<EncodeTiled>(function);
}

/// Rows [heads][tokens][head_dim] in boxes of 64 channels and a block of tokens.
CUtensorMap MapRows(const void* rows, int head_dim, int64_t tokens, int heads) {
  static const EncodeTiled encode = FindEncodeTiled();
  CUtensorMap map{};
  const cuuint64_t size[] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(tokens),
                             static_cast<cuuint64_t>(heads)};
  const cuuint64_t row_bytes = size[0] * sizeof(f16_bits);
  const cuuint64_t stride_bytes[] = {row_bytes, row_bytes * size[1]};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(PrefillBlock(head_dim)), 1}, steps[] = {1, 1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<void*>(rows), size, stride_bytes,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) kOp.Refuse("the driver refused a tensor map (" + Text(result) + ").");
  return map;
}

int64_t Stride(int64_t asked, int64_t contiguous, const char* name) {
  if (asked % 8 != 0 || (asked != 0 && asked < contiguous))
    kOp.Refuse(std::string(name) + " must be a multiple of 8 values and at least " + Text(contiguous) + ".");
  return asked ? asked : contiguous;
}

}  // namespace

PrefillPlan::PrefillPlan(const PrefillSpec& spec, const Device& device)
    : spec_(Checked(spec, device)),
      device_(device),
      dequantize_({.format = spec.format, .max_jobs = kMaxDequantizeJobs}, device),
      gqa_ratio_(spec.num_qo_heads / spec.format.num_kv_heads),
      special_(spec.softcap > 0 || spec.masked) {
  // Rows of the workspace and CTAs of the grid are 32-bit numbers.
  if (workspace_pages() * kTokens > INT32_MAX || max_tiles() * spec.format.num_kv_heads > INT32_MAX) {
    kOp.Refuse("a workspace of " + Text(workspace_pages() * kTokens) + " tokens and " + Text(max_tiles()) +
               " tiles of query rows are too many for one run. Split the batch.");
  }
}

int64_t PrefillPlan::workspace_pages() const {
  if (spec_.workspace_tokens > 0) return (spec_.workspace_tokens + kTokens - 1) / kTokens;
  const int64_t in_pages = int64_t{spec_.max_batch_size} * spec_.max_pages;
  return in_pages + (spec_.new_rows_in_pages ? 0 : spec_.max_batch_size + spec_.max_new_tokens / kTokens);
}

int64_t PrefillPlan::max_tiles() const {
  return int64_t{spec_.max_new_tokens} * gqa_ratio_ / kPrefillRows + spec_.max_batch_size;
}

int64_t PrefillPlan::visible_words() const { return (workspace_pages() + 31) / 32; }

PrefillPlan::Parts PrefillPlan::MakeParts() const {
  const PackedFormat& f = spec_.format;
  const int64_t pages = workspace_pages();
  const int64_t row_bytes = Aligned(pages * kTokens * f.num_kv_heads * f.head_dim * int64_t{sizeof(f16_bits)});
  const int64_t partial_rows = int64_t{kPartialsPerSm} * device_.num_sms * kPrefillRows;
  return {.k = row_bytes,
          .v = row_bytes,
          .jobs = Aligned(pages * int64_t{sizeof(DequantizeJob)}),
          .pages = Aligned(pages * int64_t{sizeof(PrefillPage)}),
          .sequences = Aligned(spec_.max_batch_size * int64_t{sizeof(PrefillSequence)}),
          .tiles = Aligned(int64_t{sizeof(PrefillTiles)} + max_tiles() * int64_t{sizeof(PrefillTile)}),
          .visible = spec_.masked ? Aligned(max_tiles() * visible_words() * int64_t{sizeof(uint32_t)}) : 0,
          .partial_out = Aligned(partial_rows * f.head_dim * int64_t{sizeof(float)}),
          .partial_lse = Aligned(partial_rows * 2 * int64_t{sizeof(float)})};
}

int64_t PrefillPlan::workspace_bytes() const { return MakeParts().total(); }

std::string PrefillPlan::Explain() const {
  const PackedFormat& f = spec_.format;
  return "prefill on " + device_.name + ": " + PageFormText(f.form()) + " to 16-bit rows (" + dequantize_.Explain() +
         "), room for " + Text(workspace_pages() * kTokens) + " tokens in " + Text(workspace_bytes()) +
         " bytes of workspace; then flash attention on f16 warpgroup products, head_dim " + Text(f.head_dim) +
         ", tiles of " + Text(kPrefillRows) + " rows (" + Text(gqa_ratio_) + " query heads a kv head) by " +
         Text(PrefillBlock(f.head_dim)) + " tokens, " + (spec_.causal ? "causal" : "not causal") +
         (spec_.sliding_window ? ", window " + Text(spec_.sliding_window) : "") +
         (spec_.softcap > 0 ? ", softcap" : "") + (spec_.masked ? ", masked" : "") +
         (spec_.learned_sinks ? ", learned sinks" : "") + (spec_.bf16 ? ", bf16 queries" : "") +
         "; where tiles do not fill " + Text(device_.num_sms) +
         " multiprocessors evenly, their tokens are shared among CTAs";
}

void PrefillPlan::Init() const { kOp.Check(InitPrefillAttend(), "shared memory"); }

void PrefillPlan::Run(const PrefillArrays& a, cudaStream_t stream) const {
  const PackedFormat& f = spec_.format;
  if (a.batch_size < 0 || a.batch_size > spec_.max_batch_size) {
    kOp.Refuse("batch_size=" + Text(a.batch_size) + "; this plan has room for " + Text(spec_.max_batch_size) + ".");
  }
  if (a.batch_size == 0) return;
  if (!a.page_table || !a.kv_len || !a.new_begin || !a.q || !a.out || !a.workspace) {
    kOp.Refuse("page_table, kv_len, new_begin, q, out and workspace must not be null.");
  }
  if (spec_.new_rows_in_pages ? a.k || a.v : !a.k || !a.v) {
    kOp.Refuse(spec_.new_rows_in_pages ? "k and v must be null: the plan has new_rows_in_pages."
                                       : "k and v must not be null; or plan with new_rows_in_pages.");
  }
  if (spec_.sink_tokens > 0 && !a.sink_rows)
    kOp.Refuse("sink_rows is null, but the plan has sink_tokens=" + Text(spec_.sink_tokens) + ".");
  if (spec_.learned_sinks && !a.sink_logits) kOp.Refuse("sink_logits is null, but the plan has learned_sinks.");
  if (spec_.masked && (!a.mask || a.mask_stride < 8 || a.mask_stride % 8 != 0)) {
    kOp.Refuse("the plan is masked: mask must not be null and mask_stride a multiple of 8 values.");
  }
  const int64_t qo_row = int64_t{spec_.num_qo_heads} * f.head_dim, kv_row = int64_t{f.num_kv_heads} * f.head_dim;
  const int64_t q_stride = Stride(a.q_stride, qo_row, "q_stride");
  const int64_t out_stride = Stride(a.out_stride, qo_row, "out_stride");
  const int64_t kv_stride = Stride(a.kv_stride, kv_row, "kv_stride");
  for (const void* p :
       {static_cast<const void*>(a.packed_pages), static_cast<const void*>(a.row_pages),
        static_cast<const void*>(a.sink_rows), static_cast<const void*>(a.q), static_cast<const void*>(a.k),
        static_cast<const void*>(a.v), static_cast<const void*>(a.out), static_cast<const void*>(a.mask)}) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) kOp.Refuse("arrays must be 16-byte aligned.");
  }
  if (reinterpret_cast<uintptr_t>(a.workspace) % kAlignment != 0)
    kOp.Refuse("the workspace must be " + Text(kAlignment) + "-byte aligned.");

  const Parts parts = MakeParts();
  auto* at = static_cast<std::byte*>(a.workspace);
  const auto take = [&at](int64_t bytes) {
    std::byte* part = at;
    at += bytes;
    return part;
  };
  const int64_t pages = workspace_pages();
  PrefillParams params{};
  params.k_rows = reinterpret_cast<uint16_t*>(take(parts.k));
  params.v_rows = reinterpret_cast<uint16_t*>(take(parts.v));
  params.jobs = reinterpret_cast<DequantizeJob*>(take(parts.jobs));
  params.pages = reinterpret_cast<PrefillPage*>(take(parts.pages));
  params.sequences = reinterpret_cast<PrefillSequence*>(take(parts.sequences));
  params.tiles = reinterpret_cast<PrefillTiles*>(take(parts.tiles));
  params.visible = spec_.masked ? reinterpret_cast<uint32_t*>(take(parts.visible)) : nullptr;
  params.partial_out = reinterpret_cast<float*>(take(parts.partial_out));
  params.partial_lse = reinterpret_cast<float*>(take(parts.partial_lse));
  params.k_map = MapRows(params.k_rows, f.head_dim, pages * kTokens, f.num_kv_heads);
  params.v_map = MapRows(params.v_rows, f.head_dim, pages * kTokens, f.num_kv_heads);
  params.row_pages = reinterpret_cast<const uint8_t*>(a.row_pages);
  params.page_table = a.page_table;
  params.kv_len = a.kv_len;
  params.new_begin = a.new_begin;
  params.q = a.q;
  params.k = a.k;
  params.v = a.v;
  params.out = a.out;
  params.lse = a.lse;
  params.sink_logits = spec_.learned_sinks ? a.sink_logits : nullptr;
  params.mask = spec_.masked ? a.mask : nullptr;
  params.q_stride = q_stride;
  params.out_stride = out_stride;
  params.kv_stride = kv_stride;
  params.mask_stride = a.mask_stride;
  params.batch_size = a.batch_size;
  params.num_kv_heads = f.num_kv_heads;
  params.gqa_ratio = gqa_ratio_;
  params.table_stride = spec_.max_pages;
  params.max_new_tokens = spec_.max_new_tokens;
  params.max_tiles = static_cast<int32_t>(max_tiles());
  params.workspace_pages = static_cast<int32_t>(pages);
  params.visible_words = static_cast<int32_t>(visible_words());
  params.sink_tokens = spec_.sink_tokens;
  params.window = spec_.sliding_window;
  params.causal = spec_.causal;
  params.bf16 = spec_.bf16;
  params.num_sms = device_.num_sms;
  params.max_partials = kPartialsPerSm * device_.num_sms;
  params.scale_log2 = spec_.softmax_scale * std::numbers::log2e_v<float>;
  params.softcap_log2 = spec_.softcap * std::numbers::log2e_v<float>;

  kOp.Check(LaunchPrefillSchedule(params, stream), "the schedule was refused");
  for (int64_t first = 0; a.packed_pages && first < pages; first += kMaxDequantizeJobs) {
    dequantize_.Run({.packed_pages = a.packed_pages,
                     .sink_rows = a.sink_rows,
                     .k = params.k_rows,
                     .v = params.v_rows,
                     .token_stride = f.head_dim,
                     .head_stride = pages * kTokens * f.head_dim,
                     .jobs = params.jobs + first,
                     .num_jobs = static_cast<int>(std::min<int64_t>(kMaxDequantizeJobs, pages - first))},
                    stream);
  }
  if (spec_.masked) kOp.Check(LaunchPrefillVisible(params, stream), "the mask kernel was refused");
  kOp.Check(LaunchPrefillRows(params, f.head_dim, stream), "the rows kernel was refused");
  kOp.Check(LaunchPrefillAttend(params, f.head_dim, special_, stream), "the attention was refused");
}

}  // namespace kvrazor::cuda

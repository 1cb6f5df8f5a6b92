#include "src/backends/cuda/attend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/plan_op.h"

namespace kvrazor::cuda {
namespace {

constexpr int kRowsOfOneTile = 4;
// On their way to a multiprocessor, beside a page for each team: enough to cover the memory's latency; more only makes the
// multiprocessors end further apart (docs/kernel_history.md). At least 5 pages to 8 teams.
constexpr int kBytesInFlight = 46000;

constexpr PlanOp kOp{"attend"};

void CheckSpec(const AttendSpec& s, const Device& device) {
  const PackedFormat& f = s.format;
  CheckDevice(kOp.name, f, device);
  kOp.CheckAttention(s);
  // Positions of the schedule are 32-bit numbers, and so are tokens of a sequence.
  if (s.qo_len < 1 || s.qo_len > kMaxQueryTokens) {
    kOp.Refuse("qo_len=" + Text(s.qo_len) + "; possible are 1 to " + Text(kMaxQueryTokens) + " new tokens a sequence.");
  }
  const int blocks = (s.qo_len * (s.num_qo_heads / f.num_kv_heads) + kBlockRows - 1) / kBlockRows;
  const int64_t units =
      int64_t{s.max_batch_size} * f.num_kv_heads * blocks * (int64_t{s.max_pages} * (kTokens / kRowUnit) + 2);
  if (units > INT32_MAX || int64_t{s.max_pages} * kTokens > INT32_MAX) {
    kOp.Refuse("max_batch_size * num_kv_heads * max_pages is too large to schedule (" + Text(units) +
               " units). Split the batch.");
  }
}

AttendInstance FindInstance(const AttendSpec& s, int head_tiles) {
  const PageForm form = s.format.form();
  const auto text = [](const PageForm& f, bool rotate) {
    return "head_dim=" + Text(f.head_dim) + " " + PageFormText(f) + (rotate ? "" : ", not rotated");
  };
  std::string built;
  for (const AttendInstance& i : AttendInstances()) {
    if (i.form == form && i.rotate == s.format.rotate && i.head_tiles == head_tiles) return i;
    if (i.form.kind == form.kind && i.head_tiles == head_tiles) built += "\n  " + text(i.form, i.rotate);
  }
  kOp.Refuse(
      "no kernel for " + text(form, s.format.rotate) + "; of this kind this build has" +
      (built.empty() ? " none" : built) +
      "\nChoose one of these or the cpu backend, or rebuild with other KVRAZOR_CUDA_HEAD_DIMS or KVRAZOR_CUDA_FORMS.");
}

}  // namespace

AttendPlan::AttendPlan(const AttendSpec& spec, const Device& device) : spec_(spec), device_(device) {
  CheckSpec(spec, device);
  gqa_ratio_ = spec.num_qo_heads / spec.format.num_kv_heads;
  const int rows = spec.qo_len * gqa_ratio_;
  num_blocks_ = (rows + kBlockRows - 1) / kBlockRows;
  block_rows_ = (rows + num_blocks_ - 1) / num_blocks_;
  const int head_tiles = block_rows_ <= kRowsOfOneTile ? 1 : 2;
  if (spec.format.kind == PageKind::kPlain) {
    if (spec.ring_stages != 0)
      kOp.Refuse("ring_stages=" + Text(spec.ring_stages) + "; plain pages pass through no ring: 0.");
    plain_.emplace(spec.format, device, spec.format.num_kv_heads * num_blocks_, head_tiles, spec.max_batch_size,
                   spec.max_pages);
    return;
  }
  instance_ = FindInstance(spec, head_tiles);
  // With fewer stages than teams a team could wait for a stage two units early (RingCursor).
  if (spec.ring_stages != 0 && (spec.ring_stages < instance_.teams || spec.ring_stages > kMaxStages)) {
    kOp.Refuse("ring_stages=" + Text(spec.ring_stages) + "; possible are 0 and " + Text(instance_.teams) + " to " +
               Text(kMaxStages) + ".");
  }
  const auto bytes = [&] { return instance_.shared_bytes(num_stages_, block_rows_, spec.max_batch_size); };
  const int stage_bytes = instance_.shared_bytes(2, block_rows_, 1) - instance_.shared_bytes(1, block_rows_, 1);
  num_stages_ = spec.ring_stages
                    ? spec.ring_stages
                    : std::min(instance_.teams + std::max(kBytesInFlight / stage_bytes, (instance_.teams * 5 + 7) / 8),
                               kMaxStages);
  while (spec.ring_stages == 0 && num_stages_ > instance_.teams && bytes() > device.shared_bytes) --num_stages_;
  shared_bytes_ = bytes();
  if (shared_bytes_ > device.shared_bytes) {
    kOp.Refuse(Text(num_stages_) + " stages need " + Text(shared_bytes_) + " bytes of shared memory, " + device.name +
               " has " + Text(device.shared_bytes) + ". Choose fewer stages, a smaller batch or plain pages.");
  }
}

int64_t AttendPlan::num_partials() const { return int64_t{2} * device_.num_sms * kBlockRows; }

int64_t AttendPlan::workspace_bytes() const {
  if (plain_) return plain_->workspace_bytes();
  return num_partials() * (spec_.format.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

std::string AttendPlan::Explain() const {
  const PackedFormat& f = spec_.format;
  const std::string math = FormatText(f) + (f.kind == PageKind::kRazor    ? " on int8 tensor cores"
                                            : f.kind == PageKind::kAffine ? " on f16 tensor cores"
                                                                          : "");
  const int64_t head_bytes = f.page_bytes() / f.num_kv_heads;
  const std::string text =
      "attend on " + device_.name + ": " + math + (f.rotate ? ", rotated" : "") + ", head_dim " + Text(f.head_dim) +
      ", " + Text(head_bytes) + " bytes a page and kv head, " + Text(gqa_ratio_) + " query heads a kv head" +
      (spec_.qo_len > 1 ? " and " + Text(spec_.qo_len) + " new tokens" : "") + " in " + Text(num_blocks_) + " block" +
      (num_blocks_ == 1 ? "" : "s (pages are read once a block)") + " of " + Text(block_rows_) + " rows" +
      (spec_.sliding_window ? ", window " + Text(spec_.sliding_window) : "") + (spec_.softcap > 0 ? ", softcap" : "") +
      (spec_.masked ? ", masked" : "") + (spec_.learned_sinks ? ", learned sinks" : "") +
      (spec_.bf16 ? ", bf16 queries" : "") + "; ";
  if (plain_) return text + plain_->Explain();
  return text + "stream-K over " + Text(device_.num_sms) + " CTAs, " + Text(instance_.teams) + " teams of " +
         Text(instance_.team_warps) + " consumer warp" + (instance_.team_warps == 1 ? "" : "s") + ", " +
         Text(num_stages_) + " stages, " + Text(shared_bytes_) + " bytes of shared memory, combine fused" +
         (spec_.programmatic_launch ? ", programmatic launch" : "");
}

void AttendPlan::InitWorkspace(void* workspace, cudaStream_t stream) const {
  if (plain_) return plain_->InitWorkspace(workspace, stream);
  kOp.Check(cudaFuncSetAttribute(instance_.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_),
            "shared memory");
  kOp.Check(cudaMemsetAsync(workspace, kNoPart & 0xff, static_cast<size_t>(workspace_bytes()), stream), "workspace");
}

void AttendPlan::Run(const AttendArrays& a, cudaStream_t stream) const {
  const PackedFormat& f = spec_.format;
  const int64_t row = int64_t{spec_.qo_len} * spec_.num_qo_heads * f.head_dim;
  if (a.batch_size < 0 || a.batch_size > spec_.max_batch_size) {
    kOp.Refuse("batch_size=" + Text(a.batch_size) + "; this plan has room for " + Text(spec_.max_batch_size) + ".");
  }
  if (a.batch_size == 0) return;
  if (!a.page_table || !a.kv_len || !a.row_start || !a.q || !a.out || !a.workspace) {
    kOp.Refuse("page_table, kv_len, row_start, q, out and workspace must not be null.");
  }
  if (spec_.sink_tokens > 0 && !a.sink_rows)
    kOp.Refuse("sink_rows is null, but the plan has sink_tokens=" + Text(spec_.sink_tokens) + ".");
  if (spec_.learned_sinks && !a.sink_logits) kOp.Refuse("sink_logits is null, but the plan has learned_sinks.");
  if (spec_.masked && (!a.mask || a.mask_stride < 8 || a.mask_stride % 8 != 0)) {
    kOp.Refuse("the plan is masked: mask must not be null and mask_stride a multiple of 8 values.");
  }
  for (const int64_t stride : {a.q_stride, a.out_stride}) {
    if (stride % 8 != 0 || (stride != 0 && stride < row))
      kOp.Refuse("strides must be multiples of 8 values and at least " + Text(row) + ".");
  }
  for (const void* p :
       {static_cast<const void*>(a.packed_pages), static_cast<const void*>(a.row_pages),
        static_cast<const void*>(a.sink_rows), static_cast<const void*>(a.q), static_cast<const void*>(a.out),
        static_cast<const void*>(a.mask), static_cast<const void*>(a.workspace)}) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) kOp.Refuse("arrays must be 16-byte aligned.");
  }
  AttendParams params{
      .packed_pages = reinterpret_cast<const uint8_t*>(a.packed_pages),
      .row_pages = reinterpret_cast<const uint8_t*>(a.row_pages),
      .sink_rows = reinterpret_cast<const uint8_t*>(a.sink_rows),
      .page_table = a.page_table,
      .kv_len = a.kv_len,
      .row_start = a.row_start,
      .q = a.q,
      .out = a.out,
      .lse = a.lse,
      .sink_logits = spec_.learned_sinks ? a.sink_logits : nullptr,
      .mask = spec_.masked ? a.mask : nullptr,
      .partial_out = nullptr,  // in the workspace, each kernel's own way
      .partial_lse = nullptr,
      .q_stride = a.q_stride ? a.q_stride : row,
      .out_stride = a.out_stride ? a.out_stride : row,
      .mask_stride = a.mask_stride,
      .batch_size = a.batch_size,
      .num_kv_heads = f.num_kv_heads,
      .gqa_ratio = gqa_ratio_,
      .qo_len = spec_.qo_len,
      .block_rows = block_rows_,
      .num_blocks = num_blocks_,
      .table_stride = spec_.max_pages,
      .sink_tokens = spec_.sink_tokens,
      .window = spec_.sliding_window,
      .causal = spec_.causal,
      .bf16 = spec_.bf16,
      .num_stages = num_stages_,
      .scale_log2 = spec_.softmax_scale * std::numbers::log2e_v<float>,
      .softcap_log2 = spec_.softcap * std::numbers::log2e_v<float>,
  };
  if (plain_) return plain_->Run(params, a.workspace, stream);
  params.partial_out = static_cast<float*>(a.workspace);
  params.partial_lse = params.partial_out + num_partials() * f.head_dim;
  void* arguments[] = {&params};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(device_.num_sms));
  config.blockDim = dim3(static_cast<unsigned>(instance_.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes_);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = spec_.programmatic_launch ? 1 : 0;
  kOp.Check(cudaLaunchKernelExC(&config, instance_.function, arguments), "the launch was refused");
}

}  // namespace kvrazor::cuda

#include "src/backends/cuda/seal.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "src/backends/cuda/plain_instance.h"
#include "src/backends/cuda/plain_page.h"
#include "src/backends/cuda/plan_op.h"
#include "src/backends/cuda/seal_params.h"

namespace kvrazor::cuda {
namespace {

constexpr int kMaxJobs = 65535;  // of a grid's y, with room for the blocks that store
constexpr int kMaxStoreBlocks = 32768;
constexpr int kMaxHeads = 16384;  // of a grid's x, four CTAs each

constexpr PlanOp kOp{"seal"};

/// Of one storing block of an append.
int TokensPerBlock(const SealInstance& instance) {
  return instance.few_pages.split * instance.few_pages.threads / (instance.form.head_dim / 8);
}

/// The kernel over plain pages, which takes any number of them.
SealInstance FindPlain(const PackedFormat& f) {
  std::string built;
  for (const PlainStoreInstance& i : PlainStoreInstances()) {
    const SealVariant variant{i.seal.function, 1, 1, i.seal.threads, i.seal.shared_bytes};
    if (i.head_dim == f.head_dim) return {f.form(), variant, variant, i.dequantize.function, i.dequantize.threads};
    built += (built.empty() ? "" : ", ") + Text(i.head_dim);
  }
  kOp.Refuse("no kernel for " + FormatText(f) + " at head_dim=" + Text(f.head_dim) + "; this build has head_dim " +
             built + ". Rebuild with -DKVRAZOR_CUDA_HEAD_DIMS.");
}

SealInstance FindInstance(const PackedFormat& f) {
  if (f.kind == PageKind::kPlain) return FindPlain(f);
  const PageForm form = f.form();
  std::string built;
  for (const SealInstance& i : SealInstances()) {
    if (i.form == form) return i;
    PageForm other = i.form;
    other.head_dim = form.head_dim;
    if (other == form) built += (built.empty() ? "" : ", ") + Text(i.form.head_dim);
  }
  kOp.Refuse("no kernel for " + PageFormText(form) + " at head_dim=" + Text(form.head_dim) +
             "; this build has head_dim " + (built.empty() ? "none" : built) +
             " for them. Rebuild with -DKVRAZOR_CUDA_HEAD_DIMS and -DKVRAZOR_CUDA_FORMS.");
}

/// A multiple of 8 values that does not make rows overlap.
int64_t StrideBytes(const char* name, int64_t values, int64_t contiguous) {
  if (values == 0) return contiguous * 2;
  if (values < 0 || values % 8 != 0)
    kOp.Refuse(std::string(name) + "=" + Text(values) + "; possible are positive multiples of 8 values.");
  return values * 2;
}

void CheckAligned(const void* p, const char* name) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) kOp.Refuse(std::string(name) + " must be 16-byte aligned.");
}

}  // namespace

SealPlan::SealPlan(const SealSpec& spec, const Device& device) : spec_(spec), device_(device) {
  const PackedFormat& f = spec.format;
  CheckDevice("seal", f, device);
  if (spec.max_jobs < 0 || spec.max_jobs + kMaxStoreBlocks > kMaxJobs) {
    kOp.Refuse("max_jobs=" + Text(spec.max_jobs) + "; possible are 0 to " + Text(kMaxJobs - kMaxStoreBlocks) +
               ". Seal in several runs.");
  }
  if (f.num_kv_heads < 1 || f.num_kv_heads > kMaxHeads)
    kOp.Refuse("num_kv_heads=" + Text(f.num_kv_heads) + " is out of range.");
  instance_ = FindInstance(f);
  if (spec.max_tokens < 0 || spec.max_tokens > kMaxStoreBlocks * TokensPerBlock(instance_)) {
    kOp.Refuse("max_tokens=" + Text(spec.max_tokens) + "; possible are 0 to " +
               Text(kMaxStoreBlocks * TokensPerBlock(instance_)) + ". Append in several runs.");
  }
  if (f.kind == PageKind::kRazor && f.layer.v.recipe.group_size != 0 && f.layer.v.recipe.group_size != 32) {
    kOp.Refuse(
        "razor values in groups of " + Text(f.layer.v.recipe.group_size) +
        " tokens; possible in packed pages are 32 or the whole page. Keep plain pages, or seal with the cpu backend.");
  }
  const int shared_bytes = std::max(instance_.many_pages.shared_bytes, instance_.few_pages.shared_bytes);
  if (shared_bytes > device.shared_bytes) {
    kOp.Refuse("the kernel needs " + Text(shared_bytes) + " bytes of shared memory, " + device.name + " has " +
               Text(device.shared_bytes) + ". Choose the cpu backend.");
  }
  token_scale_ = f.kind == PageKind::kAffine && f.layer.k.recipe.token_scale == TokenScale::kAllHeads;
  cluster_ = token_scale_ && f.num_kv_heads <= kMaxClusterHeads;
}

std::string SealPlan::Explain() const {
  const PackedFormat& f = spec_.format;
  std::string text = "seal on " + device_.name + ": " + FormatText(f) + (f.rotate ? ", rotated" : "") + ", head_dim " +
                     Text(f.head_dim) + ", up to " + Text(spec_.max_jobs) + " pages a run, a CTA of " +
                     Text(instance_.many_pages.threads) + " threads a head and side, " +
                     Text(instance_.many_pages.shared_bytes) + " bytes of shared memory";
  if (cluster_) text += ", token norms summed over a cluster of " + Text(f.num_kv_heads) + " heads";
  if (token_scale_ && !cluster_) {
    text += ", token norms summed by every head for itself (more than " + Text(kMaxClusterHeads) +
            " heads: keys are read " + Text(f.num_kv_heads + 1) + " times)";
  }
  if (f.kind == PageKind::kPlain) text += ", one kernel for every codec: correct, not fast";
  if (f.kind == PageKind::kRazor) text += ", codes by error feedback on f16 tensor cores in two parts";
  if (spec_.max_tokens > 0) {
    text +=
        "; append of up to " + Text(spec_.max_tokens) + (spec_.bf16 ? " bf16" : " f16") + " tokens in the same launch";
    if (instance_.few_pages.split > 1) text += ", " + Text(instance_.few_pages.split) + " CTAs a head and side there";
  }
  return text;
}

void SealPlan::Init() const {
  for (const SealVariant& variant : {instance_.many_pages, instance_.few_pages}) {
    kOp.Check(cudaFuncSetAttribute(variant.function, cudaFuncAttributeMaxDynamicSharedMemorySize, variant.shared_bytes),
              "shared memory");
  }
}

void SealPlan::Run(const SealArrays& arrays, cudaStream_t stream) const { Launch(nullptr, arrays, stream); }

void SealPlan::Append(const AppendArrays& tokens, const SealArrays& arrays, cudaStream_t stream) const {
  Launch(&tokens, arrays, stream);
}

void SealPlan::Launch(const AppendArrays* t, const SealArrays& a, cudaStream_t stream) const {
  const PackedFormat& f = spec_.format;
  const int64_t row = int64_t{f.num_kv_heads} * f.head_dim;
  if (a.num_jobs < 0 || a.num_jobs > spec_.max_jobs) {
    kOp.Refuse("num_jobs=" + Text(a.num_jobs) + "; this plan has room for " + Text(spec_.max_jobs) + ".");
  }
  if (a.num_jobs > 0) {
    if (!a.jobs || !a.packed_pages) kOp.Refuse("jobs and packed_pages must not be null.");
    if ((!a.k || !a.v) && !a.row_pages) kOp.Refuse("there are no rows: pass k and v, or row_pages.");
    if (!a.k != !a.v) kOp.Refuse("k and v must both be there or both not.");
  }
  SealParams p{};
  p.rows = {.k = reinterpret_cast<const uint8_t*>(a.k),
            .v = reinterpret_cast<const uint8_t*>(a.v),
            .token_bytes = StrideBytes("token_stride", a.token_stride, row),
            .head_bytes = StrideBytes("head_stride", a.head_stride, f.head_dim),
            .row_pages = reinterpret_cast<const uint8_t*>(a.row_pages)};
  for (const void* pointer : {static_cast<const void*>(a.k), static_cast<const void*>(a.v),
                              static_cast<const void*>(a.row_pages), static_cast<const void*>(a.packed_pages),
                              static_cast<const void*>(a.sink_rows), static_cast<const void*>(a.jobs), a.metric}) {
    CheckAligned(pointer, "every array");
  }
  if (t && t->num_tokens != 0) {
    if (t->num_tokens < 0 || t->num_tokens > spec_.max_tokens) {
      kOp.Refuse("num_tokens=" + Text(t->num_tokens) + "; this plan has room for " + Text(spec_.max_tokens) + ".");
    }
    if (!t->k || !t->v || !t->slots || !t->row_pages)
      kOp.Refuse("k, v, slots and row_pages of the new tokens must not be null.");
    if (t->num_row_pages < 1 || t->num_row_pages > INT32_MAX / kPageTokens)
      kOp.Refuse("num_row_pages=" + Text(t->num_row_pages) + " is out of range.");
    CheckAligned(t->k, "k of the new tokens");
    CheckAligned(t->v, "v of the new tokens");
    CheckAligned(t->row_pages, "row_pages");
    const int per_block = TokensPerBlock(instance_);
    p.store = {.k = static_cast<const uint8_t*>(t->k),
               .v = static_cast<const uint8_t*>(t->v),
               .token_bytes = StrideBytes("token_stride of the new tokens", t->token_stride, row),
               .head_bytes = StrideBytes("head_stride of the new tokens", t->head_stride, f.head_dim),
               .slots = t->slots,
               .row_pages = reinterpret_cast<uint8_t*>(t->row_pages),
               .num_tokens = t->num_tokens,
               .num_slots = t->num_row_pages * kPageTokens,
               .num_blocks = (t->num_tokens + per_block - 1) / per_block,
               .is_bf16 = spec_.bf16};
  }
  if (p.store.num_blocks + a.num_jobs == 0) return;
  p.jobs = a.jobs;
  p.num_jobs = a.num_jobs;
  p.metric = static_cast<const uint8_t*>(a.metric);
  p.packed_pages = reinterpret_cast<uint8_t*>(a.packed_pages);
  p.sink_rows = reinterpret_cast<uint8_t*>(a.sink_rows);
  p.page_table = a.page_table;
  p.packed_head_bytes = f.head_bytes;
  p.num_kv_heads = f.num_kv_heads;
  p.key_group_size = f.layer.k.recipe.group_size;
  p.value_group_size = f.layer.v.recipe.group_size;
  p.key_float_min = f.layer.k.recipe.zero_point == ZeroPoint::kFloatMin;
  p.value_float_min = f.layer.v.recipe.zero_point == ZeroPoint::kFloatMin;
  p.token_scale = token_scale_;
  p.norms_in_cluster = cluster_;
  p.rotate = f.rotate;

  if (f.kind == PageKind::kPlain) {
    const PlainPage page = MakePlainPage(f);
    const void* plain_arguments[] = {&p, &page};
    const dim3 grid(static_cast<unsigned>(f.num_kv_heads), static_cast<unsigned>(p.store.num_blocks + a.num_jobs), 2);
    kOp.Check(cudaLaunchKernel(
                  instance_.many_pages.function, grid, dim3(static_cast<unsigned>(instance_.many_pages.threads)),
                  const_cast<void**>(plain_arguments), static_cast<size_t>(instance_.many_pages.shared_bytes), stream),
              "the launch was refused");
    return;
  }
  const SealVariant& variant = t ? instance_.few_pages : instance_.many_pages;
  const int cluster = cluster_ ? f.num_kv_heads : variant.split;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(variant.threads));
  config.dynamicSmemBytes = static_cast<size_t>(a.num_jobs > 0 ? variant.shared_bytes : 0);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 && a.num_jobs > 0 ? 1 : 0;

  const auto heads = static_cast<unsigned>(f.num_kv_heads), jobs = static_cast<unsigned>(a.num_jobs);
  // Workers of a head that the device holds at once.
  auto resident =
      static_cast<unsigned>(std::max(1, variant.ctas_per_sm * device_.num_sms / (f.num_kv_heads * variant.split)));
  if (t) {
    // Few pages to seal among many jobs without; keys and values side by side.
    config.gridDim = dim3(heads * static_cast<unsigned>(variant.split),
                          static_cast<unsigned>(p.store.num_blocks) + std::min(jobs, std::max(1u, resident / 2)), 2);
  } else if (f.kind == PageKind::kRazor) {
    config.gridDim = dim3(jobs, heads, 2);  // a CTA each, so that those that are done make room for the next
  } else {
    // Workers stay, each with its next page on the way: no more than there is room for.
    config.gridDim = dim3(heads, 1, 1);
    int clusters = 0;
    if (cluster_) {
      kOp.Check(cudaOccupancyMaxActiveClusters(&clusters, variant.function, &config), "the device's room for clusters");
      resident = static_cast<unsigned>(std::max(1, clusters));
    }
    const bool both = 2 * jobs <= resident;
    config.gridDim = dim3(heads, both ? jobs : std::min(jobs, resident), both ? 2 : 1);
  }
  void* arguments[] = {&p};
  kOp.Check(cudaLaunchKernelExC(&config, variant.function, arguments), "the launch was refused");
}

}  // namespace kvrazor::cuda

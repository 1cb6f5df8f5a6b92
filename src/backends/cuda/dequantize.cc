#include "src/backends/cuda/dequantize.h"

#include <cuda_runtime_api.h>

#include <string>

#include "src/backends/cuda/dequantize_params.h"
#include "src/backends/cuda/plain_instance.h"
#include "src/backends/cuda/plain_page.h"
#include "src/backends/cuda/plan_op.h"
#include "src/backends/cuda/seal_instance.h"

namespace kvrazor::cuda {
namespace {

constexpr PlanOp kOp{"dequantize"};

int64_t StrideBytes(int64_t values, int64_t contiguous) {
  if (values < 0 || values % 8 != 0) kOp.Refuse("strides must be positive multiples of 8 values.");
  return 2 * (values ? values : contiguous);
}

}  // namespace

DequantizePlan::DequantizePlan(const DequantizeSpec& spec, const Device& device) : spec_(spec), device_(device) {
  const PackedFormat& f = spec.format;
  CheckDevice("dequantize", f, device);
  if (spec.max_jobs < 0 || spec.max_jobs > 65535)
    kOp.Refuse("max_jobs=" + Text(spec.max_jobs) + "; possible are 0 to 65535. Use several runs.");
  std::string built;
  if (f.kind == PageKind::kPlain) {
    for (const PlainStoreInstance& i : PlainStoreInstances()) {
      built += (built.empty() ? "" : ", ") + Text(i.head_dim);
      if (i.head_dim != f.head_dim) continue;
      kernel_ = i.dequantize.function;
      threads_ = i.dequantize.threads;
      shared_bytes_ = i.dequantize.shared_bytes;
    }
  } else {
    for (const SealInstance& i : SealInstances()) {
      PageForm form = i.form;
      form.head_dim = f.head_dim;
      if (form == f.form()) built += (built.empty() ? "" : ", ") + Text(i.form.head_dim);
      if (i.form != f.form()) continue;
      kernel_ = i.dequantize;
      threads_ = i.dequantize_threads;
    }
  }
  if (!kernel_) {
    kOp.Refuse("no kernel for " + FormatText(f) + " at head_dim=" + Text(f.head_dim) + "; this build has head_dim " +
               (built.empty() ? "none" : built) +
               " for them. Rebuild with -DKVRAZOR_CUDA_HEAD_DIMS and -DKVRAZOR_CUDA_FORMS.");
  }
}

std::string DequantizePlan::Explain() const {
  const PackedFormat& f = spec_.format;
  return "dequantize on " + device_.name + ": " + FormatText(f) + (f.rotate ? ", rotated back" : "") + ", head_dim " +
         Text(f.head_dim) + ", to f16 rows or row pages, " + Text(threads_) + " threads a head and side" +
         (f.kind == PageKind::kPlain ? ", one kernel for every codec: correct, not fast" : "");
}

void DequantizePlan::Run(const DequantizeArrays& a, cudaStream_t stream) const {
  const PackedFormat& f = spec_.format;
  if (a.num_jobs < 0 || a.num_jobs > spec_.max_jobs)
    kOp.Refuse("num_jobs=" + Text(a.num_jobs) + "; this plan has room for " + Text(spec_.max_jobs) + ".");
  if (a.num_jobs == 0) return;
  if (!a.jobs || !a.packed_pages) kOp.Refuse("jobs and packed_pages must not be null.");
  if ((!a.k || !a.v) && !a.row_pages) kOp.Refuse("there is nowhere to write: pass k and v, or row_pages.");
  for (const void* pointer :
       {static_cast<const void*>(a.packed_pages), static_cast<const void*>(a.sink_rows), static_cast<const void*>(a.k),
        static_cast<const void*>(a.v), static_cast<const void*>(a.row_pages), static_cast<const void*>(a.jobs)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) kOp.Refuse("arrays must be 16-byte aligned.");
  }
  const DequantizeParams params{.packed_pages = reinterpret_cast<const uint8_t*>(a.packed_pages),
                                .sink_rows = reinterpret_cast<const uint8_t*>(a.sink_rows),
                                .k = reinterpret_cast<uint8_t*>(a.k),
                                .v = reinterpret_cast<uint8_t*>(a.v),
                                .row_pages = reinterpret_cast<uint8_t*>(a.row_pages),
                                .jobs = a.jobs,
                                .token_bytes = StrideBytes(a.token_stride, int64_t{f.num_kv_heads} * f.head_dim),
                                .head_bytes = StrideBytes(a.head_stride, f.head_dim),
                                .packed_head_bytes = f.head_bytes,
                                .num_kv_heads = f.num_kv_heads,
                                .rotate = f.rotate};
  const dim3 grid(static_cast<unsigned>(f.num_kv_heads), static_cast<unsigned>(a.num_jobs), 2);
  PlainPage page{};
  if (f.kind == PageKind::kPlain) page = MakePlainPage(f);
  const void* arguments[] = {&params, &page};  // packed pages take the first
  const cudaError_t error = cudaLaunchKernel(kernel_, grid, dim3(static_cast<unsigned>(threads_)),
                                             const_cast<void**>(arguments), static_cast<size_t>(shared_bytes_), stream);
  if (error != cudaSuccess) kOp.Refuse(std::string("the launch was refused: ") + cudaGetErrorString(error));
}

}  // namespace kvrazor::cuda

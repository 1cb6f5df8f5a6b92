// The CPU backend: src/ops/backend.h answered by the files of this folder. Highway picks the instruction set at run time.
#include "src/ops/backend.h"

#include <algorithm>

#define HWY_WANT_AVX3_DL  // as the attention kernels do, so that it is named
#include "hwy/highway.h"
#include "src/backends/cpu/attend.h"
#include "src/backends/cpu/attend_plan.h"
#include "src/backends/cpu/dequantize.h"
#include "src/backends/cpu/rotate.h"
#include "src/backends/cpu/scratch.h"
#include "src/backends/cpu/seal.h"
#include "src/backends/cpu/second_moment.h"

namespace kvrazor {
namespace {

class CpuBackendImpl final : public Backend {
 public:
  const char* name() const override { return "cpu"; }

  std::string description() const override {
    return hwy::TargetName(hwy::SupportedAndGeneratedTargets().front());  // best first
  }

  void Rotate(float* x, int64_t num_rows, int head_dim) const override { cpu::Rotate(x, num_rows, head_dim); }

  void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
            std::byte* page) const override {
    cpu::Seal(layout, rows, exact, moment, page);
  }

  void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out) const override {
    cpu::Dequantize(layout, page, first, last, out);
  }

  void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) const override {
    cpu::AddQueries(moment, q, qo_len, num_qo_heads, stride);
  }

  void Attend(const AttendArgs& args, Executor& executor) const override { cpu::Attend(args, executor); }

  WorkspaceBytes Workspace(const LayerFormat& format, int num_qo_heads) const override {
    WorkspaceBytes most = cpu::AttendWorkspace(format, num_qo_heads);
    most.per_thread += cpu::ScratchBytes(std::max(format.k.shape.head_dim, format.v.shape.head_dim));
    return most;
  }
};

}  // namespace

const Backend& CpuBackend() {
  static const CpuBackendImpl backend;
  return backend;
}

}  // namespace kvrazor

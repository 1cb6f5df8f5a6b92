#include "bench/backends/cuda/attend_c_abi.h"

#include <memory>
#include <string>
#include <vector>

#include "bench/backends/cuda/c_abi_guard.h"
#include "reference/backend.h"
#include "src/backends/cuda/attend.h"

struct kvrazor_cuda_plan {
  kvrazor::cuda::AttendPlan plan;
  std::string explanation;
};

namespace {

using kvrazor::cuda::AttendPlan;
using kvrazor::cuda::Guard;

AttendPlan MakePlan(const kvrazor_cuda_attend_spec& s) {
  const kvrazor::Recipe recipe = kvrazor::ParseRecipe(s.recipe);
  const kvrazor::HeadShape shape{s.num_kv_heads, s.head_dim};
  const kvrazor::LayerFormat layer{kvrazor::MakePageLayout(recipe.k, kvrazor::Side::kKey, shape),
                                   kvrazor::MakePageLayout(recipe.v, kvrazor::Side::kValue, shape)};
  const kvrazor::cuda::Device device = kvrazor::cuda::CurrentDevice();
  return AttendPlan({.format = kvrazor::cuda::MakePackedFormat(layer, device.compute_major),
                     .num_qo_heads = s.num_qo_heads,
                     .max_batch_size = s.max_batch_size,
                     .max_pages = s.max_pages,
                     .sink_tokens = recipe.sink_tokens,
                     .softmax_scale = s.softmax_scale,
                     .ring_stages = s.ring_stages,
                     .programmatic_launch = s.programmatic_launch != 0},
                    device);
}

}  // namespace

int kvrazor_cuda_attend_plan(const kvrazor_cuda_attend_spec* spec, kvrazor_cuda_plan** plan, char* error,
                             int error_size) {
  return Guard(error, error_size, [&] {
    AttendPlan made = MakePlan(*spec);
    std::string text = made.Explain();
    *plan = new kvrazor_cuda_plan{std::move(made), std::move(text)};
  });
}

void kvrazor_cuda_attend_free(kvrazor_cuda_plan* plan) { delete plan; }

const char* kvrazor_cuda_attend_explain(const kvrazor_cuda_plan* plan) { return plan->explanation.c_str(); }

void kvrazor_cuda_attend_sizes(const kvrazor_cuda_plan* plan, kvrazor_cuda_sizes* sizes) {
  const auto& format = plan->plan.spec().format;
  *sizes = {format.page_bytes(), format.row_page_bytes(), format.sink_bytes(), plan->plan.workspace_bytes(),
            plan->plan.spec().sink_tokens};
}

int kvrazor_cuda_attend_init(const kvrazor_cuda_plan* plan, void* d_workspace, void* stream, char* error,
                             int error_size) {
  return Guard(error, error_size, [&] { plan->plan.InitWorkspace(d_workspace, static_cast<cudaStream_t>(stream)); });
}

int kvrazor_cuda_attend_run(const kvrazor_cuda_plan* plan, const kvrazor_cuda_attend_arrays* a, char* error,
                            int error_size) {
  return Guard(error, error_size, [&] {
    plan->plan.Run({.packed_pages = static_cast<const std::byte*>(a->d_packed_pages),
                    .row_pages = static_cast<const std::byte*>(a->d_row_pages),
                    .sink_rows = static_cast<const std::byte*>(a->d_sink_rows),
                    .page_table = a->d_page_table,
                    .kv_len = a->d_kv_len,
                    .row_start = a->d_row_start,
                    .q = static_cast<const kvrazor::f16_bits*>(a->d_q),
                    .out = static_cast<kvrazor::f16_bits*>(a->d_out),
                    .lse = a->d_lse,
                    .workspace = a->d_workspace,
                    .batch_size = a->batch_size},
                   static_cast<cudaStream_t>(a->stream));
  });
}

int kvrazor_cuda_make_page(const kvrazor_cuda_plan* plan, const uint16_t* k, const uint16_t* v, void* packed,
                           char* error, int error_size) {
  return Guard(error, error_size, [&] {
    const auto& format = plan->plan.spec().format;
    const auto seal = [](const kvrazor::PageLayout& layout, const uint16_t* rows) {
      auto page = std::vector<std::byte>(static_cast<size_t>(layout.page_bytes));
      kvrazor::ReferenceBackend().Seal(layout, rows, {}, nullptr, page.data());
      return page;
    };
    const auto k_page = seal(format.layer.k, k);
    const auto v_page = seal(format.layer.v, v);
    kvrazor::cuda::PackPage(format, k_page.data(), v_page.data(), static_cast<std::byte*>(packed));
  });
}

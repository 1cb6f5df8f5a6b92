#include "bench/backends/cuda/prefill_c_abi.h"

#include <string>

#include "bench/backends/cuda/c_abi_guard.h"
#include "src/backends/cuda/prefill.h"

struct kvrazor_cuda_prefill {
  kvrazor::cuda::PrefillPlan plan;
  std::string explanation;
};

using kvrazor::cuda::Guard;

int kvrazor_cuda_prefill_plan(const kvrazor_cuda_prefill_spec* s, kvrazor_cuda_prefill** plan, char* error,
                              int error_size) {
  return Guard(error, error_size, [&] {
    using namespace kvrazor;
    const Recipe recipe = ParseRecipe(s->recipe);
    const HeadShape shape{s->num_kv_heads, s->head_dim};
    const auto format = cuda::MakePackedFormat(
        {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)});
    cuda::PrefillPlan made({.format = format,
                            .num_qo_heads = s->num_qo_heads,
                            .max_batch_size = s->max_batch_size,
                            .max_pages = s->max_pages,
                            .max_new_tokens = s->max_new_tokens,
                            .sink_tokens = recipe.sink_tokens,
                            .softmax_scale = s->softmax_scale,
                            .bf16 = s->bf16 != 0},
                           cuda::CurrentDevice());
    made.Init();
    std::string text = made.Explain();
    *plan = new kvrazor_cuda_prefill{std::move(made), std::move(text)};
  });
}

void kvrazor_cuda_prefill_free(kvrazor_cuda_prefill* plan) { delete plan; }

const char* kvrazor_cuda_prefill_explain(const kvrazor_cuda_prefill* plan) { return plan->explanation.c_str(); }

void kvrazor_cuda_prefill_get_sizes(const kvrazor_cuda_prefill* plan, kvrazor_cuda_prefill_sizes* sizes) {
  const auto& spec = plan->plan.spec();
  *sizes = {spec.format.row_page_bytes(), spec.format.sink_bytes(), plan->plan.workspace_bytes(), spec.sink_tokens};
}

int kvrazor_cuda_prefill_run(const kvrazor_cuda_prefill* plan, const kvrazor_cuda_prefill_arrays* a, char* error,
                             int error_size) {
  return Guard(error, error_size, [&] {
    using kvrazor::f16_bits;
    plan->plan.Run({.packed_pages = static_cast<const std::byte*>(a->d_packed_pages),
                    .row_pages = static_cast<const std::byte*>(a->d_row_pages),
                    .sink_rows = static_cast<const std::byte*>(a->d_sink_rows),
                    .page_table = a->d_page_table,
                    .kv_len = a->d_kv_len,
                    .new_begin = a->d_new_begin,
                    .q = static_cast<const f16_bits*>(a->d_q),
                    .k = static_cast<const f16_bits*>(a->d_k),
                    .v = static_cast<const f16_bits*>(a->d_v),
                    .out = static_cast<f16_bits*>(a->d_out),
                    .workspace = a->d_workspace,
                    .batch_size = a->batch_size},
                   static_cast<cudaStream_t>(a->stream));
  });
}

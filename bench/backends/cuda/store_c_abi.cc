#include "bench/backends/cuda/store_c_abi.h"

#include "bench/backends/cuda/c_abi_guard.h"
#include "src/backends/cuda/dequantize.h"
#include "src/backends/cuda/seal.h"

struct kvrazor_cuda_store {
  kvrazor::cuda::SealPlan seal;
  kvrazor::cuda::DequantizePlan dequantize;
};

using kvrazor::cuda::Guard;

int kvrazor_cuda_store_plan(const char* recipe_text, int32_t head_dim, int32_t num_kv_heads, int32_t max_jobs,
                            kvrazor_cuda_store** plan, char* error, int error_size) {
  return Guard(error, error_size, [&] {
    using namespace kvrazor;
    const Recipe recipe = ParseRecipe(recipe_text);
    const HeadShape shape{num_kv_heads, head_dim};
    const auto format = cuda::MakePackedFormat(
        {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)});
    const cuda::Device device = cuda::CurrentDevice();
    auto* made = new kvrazor_cuda_store{cuda::SealPlan({.format = format, .max_jobs = max_jobs}, device),
                                        cuda::DequantizePlan({.format = format, .max_jobs = max_jobs}, device)};
    made->seal.Init();
    *plan = made;
  });
}

void kvrazor_cuda_store_free(kvrazor_cuda_store* plan) { delete plan; }

int64_t kvrazor_cuda_store_page_bytes(const kvrazor_cuda_store* plan) { return plan->seal.spec().format.page_bytes(); }

int kvrazor_cuda_store_seal(const kvrazor_cuda_store* plan, const void* d_k, const void* d_v, void* d_packed_pages,
                            const void* d_jobs, int32_t num_jobs, void* stream, char* error, int error_size) {
  return Guard(error, error_size, [&] {
    plan->seal.Run({.k = static_cast<const kvrazor::f16_bits*>(d_k),
                    .v = static_cast<const kvrazor::f16_bits*>(d_v),
                    .packed_pages = static_cast<std::byte*>(d_packed_pages),
                    .jobs = static_cast<const kvrazor::cuda::SealJob*>(d_jobs),
                    .num_jobs = num_jobs},
                   static_cast<cudaStream_t>(stream));
  });
}

int kvrazor_cuda_store_dequantize(const kvrazor_cuda_store* plan, const void* d_packed_pages, void* d_k, void* d_v,
                                  int64_t token_stride, int64_t head_stride, const void* d_jobs, int32_t num_jobs,
                                  void* stream, char* error, int error_size) {
  return Guard(error, error_size, [&] {
    plan->dequantize.Run({.packed_pages = static_cast<const std::byte*>(d_packed_pages),
                          .k = static_cast<kvrazor::f16_bits*>(d_k),
                          .v = static_cast<kvrazor::f16_bits*>(d_v),
                          .token_stride = token_stride,
                          .head_stride = head_stride,
                          .jobs = static_cast<const kvrazor::cuda::DequantizeJob*>(d_jobs),
                          .num_jobs = num_jobs},
                         static_cast<cudaStream_t>(stream));
  });
}

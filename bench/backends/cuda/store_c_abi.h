/* Sealing and reading back on the GPU for other languages (bench/prefill_vs_bf16.py loads it). Pointers named d_* are device memory, see
 * src/backends/cuda/seal.h and dequantize.h for their shapes. Functions return 0, or 1 after writing the reason into `error`. */
#ifndef KVRAZOR_BENCH_BACKENDS_CUDA_STORE_C_ABI_H_
#define KVRAZOR_BENCH_BACKENDS_CUDA_STORE_C_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvrazor_cuda_store kvrazor_cuda_store;

/* max_jobs: pages of one call. */
int kvrazor_cuda_store_plan(const char* recipe, int32_t head_dim, int32_t num_kv_heads, int32_t max_jobs,
                            kvrazor_cuda_store** plan, char* error, int error_size);
void kvrazor_cuda_store_free(kvrazor_cuda_store* plan);
int64_t kvrazor_cuda_store_page_bytes(const kvrazor_cuda_store* plan);

/* d_jobs: int32 [num_jobs][8], SealJob; d_k, d_v: f16 [tokens][num_kv_heads][head_dim], contiguous. */
int kvrazor_cuda_store_seal(const kvrazor_cuda_store* plan, const void* d_k, const void* d_v, void* d_packed_pages,
                            const void* d_jobs, int32_t num_jobs, void* stream, char* error, int error_size);
/* d_jobs: int32 [num_jobs][4], DequantizeJob; the strides count values. */
int kvrazor_cuda_store_dequantize(const kvrazor_cuda_store* plan, const void* d_packed_pages, void* d_k, void* d_v,
                                  int64_t token_stride, int64_t head_stride, const void* d_jobs, int32_t num_jobs,
                                  void* stream, char* error, int error_size);

#ifdef __cplusplus
}
#endif
#endif /* KVRAZOR_BENCH_BACKENDS_CUDA_STORE_C_ABI_H_ */

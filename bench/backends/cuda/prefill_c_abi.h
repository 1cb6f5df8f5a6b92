/* Chunked prefill on the GPU for other languages (bench/prefill_vs_bf16.py loads it). Pointers named d_* are device memory, see
 * src/backends/cuda/prefill.h for their shapes. Functions return 0, or 1 after writing the reason into `error`. */
#ifndef KVRAZOR_BENCH_BACKENDS_CUDA_PREFILL_C_ABI_H_
#define KVRAZOR_BENCH_BACKENDS_CUDA_PREFILL_C_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvrazor_cuda_prefill kvrazor_cuda_prefill;

typedef struct {
  const char* recipe; /* "razor-2", "oscar", ...; its sinks count */
  int32_t head_dim, num_kv_heads, num_qo_heads, max_batch_size, max_pages, max_new_tokens;
  float softmax_scale;
  int32_t bf16; /* 0 or 1 */
} kvrazor_cuda_prefill_spec;

typedef struct {
  const void *d_packed_pages, *d_row_pages, *d_sink_rows;
  const int32_t *d_page_table, *d_kv_len, *d_new_begin;
  const void *d_q, *d_k, *d_v;
  void* d_out;
  void* d_workspace;
  int32_t batch_size;
  void* stream; /* cudaStream_t */
} kvrazor_cuda_prefill_arrays;

typedef struct {
  int64_t row_page_bytes, sink_bytes, workspace_bytes;
  int32_t sink_tokens;
} kvrazor_cuda_prefill_sizes;

int kvrazor_cuda_prefill_plan(const kvrazor_cuda_prefill_spec* spec, kvrazor_cuda_prefill** plan, char* error,
                              int error_size);
void kvrazor_cuda_prefill_free(kvrazor_cuda_prefill* plan);
const char* kvrazor_cuda_prefill_explain(const kvrazor_cuda_prefill* plan);
void kvrazor_cuda_prefill_get_sizes(const kvrazor_cuda_prefill* plan, kvrazor_cuda_prefill_sizes* sizes);
int kvrazor_cuda_prefill_run(const kvrazor_cuda_prefill* plan, const kvrazor_cuda_prefill_arrays* arrays, char* error,
                             int error_size);

#ifdef __cplusplus
}
#endif
#endif /* KVRAZOR_BENCH_BACKENDS_CUDA_PREFILL_C_ABI_H_ */

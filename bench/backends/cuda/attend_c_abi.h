/* The CUDA decode attention for other languages (bench/attend_vs_bf16.py loads it). Pointers named d_* are device memory, see
 * src/backends/cuda/attend.h for their shapes. Functions return 0, or 1 after writing the reason into `error`. */
#ifndef KVRAZOR_BENCH_BACKENDS_CUDA_ATTEND_C_ABI_H_
#define KVRAZOR_BENCH_BACKENDS_CUDA_ATTEND_C_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvrazor_cuda_plan kvrazor_cuda_plan;

typedef struct {
  const char* recipe; /* "razor-2", "oscar", ...; its sinks count */
  int32_t head_dim, num_kv_heads, num_qo_heads, max_batch_size, max_pages, ring_stages;
  int32_t programmatic_launch; /* 0 or 1 */
  float softmax_scale;
} kvrazor_cuda_attend_spec;

typedef struct {
  const void *d_packed_pages, *d_row_pages, *d_sink_rows;
  const int32_t *d_page_table, *d_kv_len, *d_row_start;
  const void* d_q;
  void* d_out;
  float* d_lse;
  void* d_workspace;
  int32_t batch_size;
  void* stream; /* cudaStream_t */
} kvrazor_cuda_attend_arrays;

typedef struct {
  int64_t page_bytes, row_page_bytes, sink_bytes, workspace_bytes;
  int32_t sink_tokens;
} kvrazor_cuda_sizes;

int kvrazor_cuda_attend_plan(const kvrazor_cuda_attend_spec* spec, kvrazor_cuda_plan** plan, char* error,
                             int error_size);
void kvrazor_cuda_attend_free(kvrazor_cuda_plan* plan);
const char* kvrazor_cuda_attend_explain(const kvrazor_cuda_plan* plan);
void kvrazor_cuda_attend_sizes(const kvrazor_cuda_plan* plan, kvrazor_cuda_sizes* sizes);
int kvrazor_cuda_attend_init(const kvrazor_cuda_plan* plan, void* d_workspace, void* stream, char* error,
                             int error_size);
int kvrazor_cuda_attend_run(const kvrazor_cuda_plan* plan, const kvrazor_cuda_attend_arrays* arrays, char* error,
                            int error_size);

/* Seals rows [128][num_kv_heads][head_dim] f16 (host) with the float64 reference and packs them (host, page_bytes): slow, for making
 * test pages. */
int kvrazor_cuda_make_page(const kvrazor_cuda_plan* plan, const uint16_t* k, const uint16_t* v, void* packed,
                           char* error, int error_size);

#ifdef __cplusplus
}
#endif
#endif /* KVRAZOR_BENCH_BACKENDS_CUDA_ATTEND_C_ABI_H_ */

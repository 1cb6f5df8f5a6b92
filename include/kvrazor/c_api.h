/* The packed KV cache for C and for languages that call C. Pages, sequences and the protocol of a step are those of
 * kvrazor/cache.h. Every function that can fail returns a status and, unless it is KVRAZOR_OK, leaves everything as it
 * was; kvrazor_last_error says why. No C++ exception leaves this interface. */
#ifndef KVRAZOR_C_API_H
#define KVRAZOR_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVRAZOR_API __attribute__((visibility("default")))

enum {
  KVRAZOR_OK = 0,
  KVRAZOR_OUT_OF_PAGES = 1, /* expected: free a sequence and call again */
  KVRAZOR_ERROR = 2,        /* misuse or bad input */
  KVRAZOR_OUT_OF_MEMORY = 3
};
enum { KVRAZOR_F32 = 0, KVRAZOR_F16 = 1, KVRAZOR_BF16 = 2 };
enum { KVRAZOR_KEY = 0, KVRAZOR_VALUE = 1 };
enum { KVRAZOR_PAGE_TOKENS = 128 };

KVRAZOR_API const char* kvrazor_version(void);

/* Why the last call on this thread that did not return KVRAZOR_OK failed; "" before the first. Valid until the next such
 * call. */
KVRAZOR_API const char* kvrazor_last_error(void);

/* Rows [num_tokens][num_heads][head_dim]; strides count elements, the channels of a head are contiguous. Both strides 0:
 * contiguous rows. Inputs are never written. */
typedef struct kvrazor_tensor {
  void* data;
  int32_t dtype;
  int32_t num_heads;
  int32_t head_dim;
  int64_t num_tokens;
  int64_t token_stride;
  int64_t head_stride;
} kvrazor_tensor;

/* Recipes: text as in kvrazor/recipe.h, for example "oscar" or "razor-2:sinks=8;0-1=f16". */

/* Checks `recipe` and writes its shortest text and a terminating 0, cut to `size` characters. *length, unless NULL:
 * characters of the whole text. */
KVRAZOR_API int kvrazor_recipe_text(const char* recipe, char* text, size_t size, size_t* length);

/* Threads: a pool for attention and sealing. NULL wherever one is taken means the caller's thread alone. Two calls on
 * one pool wait for each other. */
typedef struct kvrazor_threads kvrazor_threads;
KVRAZOR_API int kvrazor_threads_create(int num_threads, kvrazor_threads** threads);
KVRAZOR_API void kvrazor_threads_destroy(kvrazor_threads* threads);

/* The cache. Threads: functions that take a const cache may run at the same time; every other one must have it to itself. */
typedef struct kvrazor_cache kvrazor_cache;

typedef struct kvrazor_cache_options { /* the fields of kvrazor::CacheOptions */
  const char* recipe;
  int32_t num_layers;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t max_sequences;
  int64_t max_tokens;
  int64_t max_new_tokens;
  int64_t sealed_pages;
  int64_t f16_pages;
  int32_t query_stride;
} kvrazor_cache_options;
/* Fills in the defaults; recipe, the shape and max_tokens must be set afterwards. */
KVRAZOR_API void kvrazor_cache_options_init(kvrazor_cache_options* options);

typedef struct kvrazor_cache_plan {
  int64_t sealed_pages, f16_pages;
  int64_t sealed_page_bytes, f16_page_bytes;
  int64_t pool_bytes, moment_bytes;
  int64_t exact_bytes;
} kvrazor_cache_plan;
/* The memory that kvrazor_cache_create would take. */
KVRAZOR_API int kvrazor_cache_plan_memory(const kvrazor_cache_options* options, kvrazor_cache_plan* plan);

KVRAZOR_API int kvrazor_cache_create(const kvrazor_cache_options* options, kvrazor_cache** cache);
KVRAZOR_API void kvrazor_cache_destroy(kvrazor_cache* cache);

/* Sequences. */
KVRAZOR_API int kvrazor_cache_open(kvrazor_cache* cache, int64_t* seq);
KVRAZOR_API int kvrazor_cache_free(kvrazor_cache* cache, int64_t seq);
KVRAZOR_API int kvrazor_cache_fork(kvrazor_cache* cache, int64_t seq, int64_t* fork);
KVRAZOR_API int kvrazor_cache_roll_back(kvrazor_cache* cache, int64_t seq, int64_t tokens);
KVRAZOR_API int kvrazor_cache_truncate(kvrazor_cache* cache, int64_t seq, int64_t kv_len);
KVRAZOR_API int kvrazor_cache_length(const kvrazor_cache* cache, int64_t seq, int64_t* kv_len, int64_t* sealed_len);

/* A step: begin, then for each layer append, add_queries (razor keys), attend; then commit, or cancel.
 *   seqs  [num_seqs]; the rows of k, v, q and out are the new tokens of all of them, in this order */
KVRAZOR_API int kvrazor_cache_begin(kvrazor_cache* cache, const int64_t* seqs, const int64_t* new_tokens,
                                    int64_t num_seqs);
KVRAZOR_API int kvrazor_cache_append(kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                                     const kvrazor_tensor* k, const kvrazor_tensor* v);
KVRAZOR_API int kvrazor_cache_add_queries(kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                                          const kvrazor_tensor* q);

typedef struct kvrazor_attend_options {
  float softmax_scale;  /* 0: 1 / sqrt(head_dim) */
  float logit_softcap;  /* 0: none */
  const uint16_t* mask; /* f16 bits [rows of q][mask_stride], added to the logits; NULL: causal */
  int64_t mask_stride;
  const float* alibi_slopes; /* [num_qo_heads] or NULL */
  const float* sink_logits;  /* [num_qo_heads] or NULL */
  float* lse;                /* [rows of q][num_qo_heads] or NULL */
} kvrazor_attend_options;
/* `options` may be NULL: all zero. */
KVRAZOR_API int kvrazor_cache_attend(const kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                                     const kvrazor_tensor* q, const kvrazor_tensor* out,
                                     const kvrazor_attend_options* options, kvrazor_threads* threads);
KVRAZOR_API int kvrazor_cache_commit(kvrazor_cache* cache, const int64_t* seqs, int64_t num_seqs,
                                     kvrazor_threads* threads);
KVRAZOR_API int kvrazor_cache_cancel(kvrazor_cache* cache, const int64_t* seqs, int64_t num_seqs);

/* Values of committed tokens [first, last) as attention sees them.
 *   out  f32 [last - first][num_kv_heads][head_dim] */
KVRAZOR_API int kvrazor_cache_read(const kvrazor_cache* cache, int64_t seq, int layer, int side, int64_t first,
                                   int64_t last, float* out);

typedef struct kvrazor_cache_stats { /* the fields of kvrazor::CacheStats; counts and bytes are exact */
  int64_t num_sequences, num_tokens;
  int64_t sealed_pages, sealed_pages_used, sealed_pages_peak;
  int64_t f16_pages, f16_pages_used, f16_pages_peak;
  int64_t shared_pages;
  int64_t sealed_bytes, f16_side_bytes, window_bytes, exact_bytes, table_bytes;
  int64_t total_bytes, peak_bytes, pool_bytes;
  int64_t pages_sealed, pages_thawed, pages_copied;
  double bits_per_value;
} kvrazor_cache_stats;
KVRAZOR_API int kvrazor_cache_get_stats(const kvrazor_cache* cache, kvrazor_cache_stats* stats);

/* The ops by themselves, on pages that the caller keeps. A format is what a recipe stores for one layer. */
typedef struct kvrazor_format kvrazor_format;
KVRAZOR_API int kvrazor_format_create(const char* recipe, int layer, int num_kv_heads, int head_dim,
                                      kvrazor_format** format);
KVRAZOR_API void kvrazor_format_destroy(kvrazor_format* format);

typedef struct kvrazor_page_layout { /* see kvrazor/layout.h; -1: absent */
  int64_t page_bytes;                /* 0: this side stays in 16 bits */
  int64_t f16_page_bytes;
  int64_t token_scale_at, head_scalars_at, heads_at, head_bytes;                   /* from the start of a page */
  int64_t codes_at, codes_bytes, scale_at, offset_at, mean_at, norm_at, centre_at; /* from the start of a head */
  int32_t bits, group_size;
  int32_t sink_tokens, residual_tokens;
  double bits_per_value;
  int64_t high_codes_at, mean_factor_at; /* from the start of a head */
} kvrazor_page_layout;
KVRAZOR_API int kvrazor_format_layout(const kvrazor_format* format, int side, kvrazor_page_layout* layout);

/* The second moment of the queries of one layer, which razor keys are sealed with. */
typedef struct kvrazor_moment kvrazor_moment;
KVRAZOR_API int kvrazor_moment_create(const kvrazor_format* format, kvrazor_moment** moment);
KVRAZOR_API void kvrazor_moment_destroy(kvrazor_moment* moment);
/* Adds every stride-th token of q, f32. */
KVRAZOR_API int kvrazor_moment_add(kvrazor_moment* moment, const kvrazor_tensor* q, int stride);

/* Seals 128 tokens of one side.
 *   rows    f16 bits [128][num_kv_heads][head_dim], as the model wrote them
 *   exact   bit t % 64 of word t / 64: token t is kept elsewhere and left out of every statistic; NULL: none
 *   moment  or NULL
 *   page    page_bytes, 64-byte aligned */
KVRAZOR_API int kvrazor_seal(const kvrazor_format* format, int side, const uint16_t* rows, const uint64_t exact[2],
                             const kvrazor_moment* moment, void* page);

/* One side of a page: sealed bytes (64-byte aligned) or f16 rows, the other NULL. */
typedef struct kvrazor_page_side {
  const void* sealed;
  const uint16_t* rows;       /* [tokens][num_kv_heads][head_dim] */
  const uint16_t* exact_rows; /* rows of the exact tokens of a sealed page, in order */
  uint64_t exact[2];
} kvrazor_page_side;

/* Tokens [first, last) as the model would see them.
 *   out  f32 [last - first][num_kv_heads][head_dim] */
KVRAZOR_API int kvrazor_dequantize(const kvrazor_format* format, int side, const kvrazor_page_side* page, int first,
                                   int last, float* out);

typedef struct kvrazor_attend_page {
  kvrazor_page_side k, v;
  int64_t first_key;  /* position of token 0 */
  int32_t num_tokens; /* tokens 0 .. num_tokens - 1 are read */
} kvrazor_attend_page;
/* Attention of the rows of q (f32) over pages with disjoint keys; without a mask row i sees keys up to causal_base + i. */
KVRAZOR_API int kvrazor_attend(const kvrazor_format* format, const kvrazor_attend_page* pages, int64_t num_pages,
                               const kvrazor_tensor* q, const kvrazor_tensor* out, int64_t causal_base,
                               const kvrazor_attend_options* options, kvrazor_threads* threads);

#ifdef __cplusplus
}
#endif
#endif

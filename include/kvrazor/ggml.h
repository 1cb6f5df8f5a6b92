/* The llama.cpp plug-in as a C API: keeps the KV cache of every context created after kvrazor_ggml_attach in packed form.
 * Stock programs use the same code through GGML_BACKEND_PATH=libggml-kvrazor.so and the environment (docs/llama_cpp.md). */
#ifndef KVRAZOR_GGML_H
#define KVRAZOR_GGML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVRAZOR_API __attribute__((visibility("default")))

/* Attaches to the CPU device that ggml has registered, once; later calls return the first result. The host is left untouched
 * on failure (another ggml version, a failed self-test): returns false and writes one line that says why to `error`. */
KVRAZOR_API bool kvrazor_ggml_attach(char* error, size_t error_size);

/* Recipe of the contexts created from now on: text or a .json path (kvrazor/recipe.h), "off" for llama.cpp's own cache.
 * `require`: creating a context fails if any layer would stay in 16 bits. Returns false and says why; nothing changed then. */
KVRAZOR_API bool kvrazor_ggml_set_recipe(const char* recipe, bool require, char* error, size_t error_size);

/* What the caches of all living contexts hold, and what was done since the last reset. Bytes are the memory that was
 * taken from the system, in whole system pages where a range is mapped. */
typedef struct kvrazor_ggml_stats {
  int64_t num_layers;           /* layers with a KV cache */
  int64_t packed_layers;        /* of these, stored by kvrazor */
  int64_t f16_layers;           /* left to llama.cpp in 16 bits (or the -ctk/-ctv type), each logged with its reason */
  int64_t f16_equivalent_bytes; /* what a 16-bit cache of the same contexts takes */
  int64_t packed_bytes;         /* sealed pages */
  int64_t staging_bytes;        /* 16-bit rows: residual windows, pages being filled, transient prefill pages */
  int64_t staging_peak_bytes;   /* most 16-bit rows there ever were */
  int64_t exact_bytes;          /* sinks and outlier tokens in 16 bits */
  int64_t table_bytes;          /* page tables, second moments */
  int64_t other_bytes;          /* cache tensors left in 16 bits */
  int64_t total_bytes;          /* everything now: packed + staging + exact + table + other */
  int64_t peak_bytes;           /* highest total_bytes so far (of several contexts: the sum of each one's highest) */
  int64_t sealed_pages, thawed_pages; /* page sides sealed; sealed page sides that were written to again */
  int64_t generic_nodes;              /* graph nodes that needed a 16-bit view of a packed tensor (correct, slow) */
  int64_t state_errors;               /* damaged or foreign state blocks refused */
  int64_t refused_contexts;           /* not created, or stopped, because packing was required and is not possible */
  double bits_per_value;              /* of sealed pages, everything in a page included */
} kvrazor_ggml_stats;
KVRAZOR_API void kvrazor_ggml_get_stats(kvrazor_ggml_stats* stats);
KVRAZOR_API void kvrazor_ggml_reset_counters(void);

/* JSON: one object a layer of the newest context {"layer","side","format","kernel","bits_per_value","reason"}.
 * Returns the length; writes at most size - 1 characters and a terminating 0. */
KVRAZOR_API size_t kvrazor_ggml_explain(char* json, size_t size);

#ifdef __cplusplus
}
#endif
#endif

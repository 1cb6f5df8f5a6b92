/* Decoding with a packed KV cache, from C: a prompt of 384 tokens, then 128 one by one, on a cache of 2.3 bits per value
 * and on one of 16 bits, side by side. Prints what each holds and how far apart their attention outputs are. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvrazor/c_api.h"

enum { kLayers = 2, kKvHeads = 2, kQueryHeads = 6, kHeadDim = 64, kPrompt = 384, kNew = 128 };

/* Every call of the API returns a status; this program gives up on the first that is not KVRAZOR_OK. */
static void Check(int status) {
  if (status == KVRAZOR_OK) return;
  fprintf(stderr, "decode_step: %s\n", kvrazor_last_error());
  exit(1);
}

static float Normal(void) {
  float sum = 0;
  for (int i = 0; i < 12; ++i) sum += (float)rand() / (float)RAND_MAX;
  return sum - 6.0f;
}

static void Fill(float* rows, int64_t n) {
  for (int64_t i = 0; i < n; ++i) rows[i] = Normal();
}

static kvrazor_tensor Rows(float* data, int64_t tokens, int32_t heads) {
  kvrazor_tensor t = {data, KVRAZOR_F32, heads, kHeadDim, tokens, 0, 0};
  return t;
}

static kvrazor_cache* MakeCache(const char* recipe) {
  kvrazor_cache_options options;
  kvrazor_cache_options_init(&options);
  options.recipe = recipe;
  options.num_layers = kLayers;
  options.num_kv_heads = kKvHeads;
  options.head_dim = kHeadDim;
  options.max_tokens = 4096;
  kvrazor_cache* cache = NULL;
  Check(kvrazor_cache_create(&options, &cache));
  return cache;
}

int main(void) {
  static float k[kPrompt * kKvHeads * kHeadDim], v[kPrompt * kKvHeads * kHeadDim];
  static float q[kPrompt * kQueryHeads * kHeadDim], out[2][kPrompt * kQueryHeads * kHeadDim];
  kvrazor_cache* caches[2] = {MakeCache("f16"), MakeCache("razor-2")};
  kvrazor_threads* threads = NULL;
  Check(kvrazor_threads_create(2, &threads));
  int64_t seq[2];
  for (int c = 0; c < 2; ++c) Check(kvrazor_cache_open(caches[c], &seq[c]));

  double error = 0, size = 0;
  for (int64_t done = 0; done < kPrompt + kNew;) {
    const int64_t tokens = done == 0 ? kPrompt : 1; /* the prompt is one step, then a token a step */
    for (int c = 0; c < 2; ++c) Check(kvrazor_cache_begin(caches[c], &seq[c], &tokens, 1));
    for (int layer = 0; layer < kLayers; ++layer) {
      Fill(k, tokens * kKvHeads * kHeadDim); /* a model would compute these */
      Fill(v, tokens * kKvHeads * kHeadDim);
      Fill(q, tokens * kQueryHeads * kHeadDim);
      const kvrazor_tensor kt = Rows(k, tokens, kKvHeads), vt = Rows(v, tokens, kKvHeads),
                           qt = Rows(q, tokens, kQueryHeads);
      for (int c = 0; c < 2; ++c) {
        const kvrazor_tensor ot = Rows(out[c], tokens, kQueryHeads);
        Check(kvrazor_cache_append(caches[c], layer, &seq[c], 1, &kt, &vt));
        Check(kvrazor_cache_add_queries(caches[c], layer, &seq[c], 1, &qt));
        Check(kvrazor_cache_attend(caches[c], layer, &seq[c], 1, &qt, &ot, NULL, threads));
      }
      for (int64_t i = 0; i < tokens * kQueryHeads * kHeadDim; ++i) {
        error += pow(out[1][i] - out[0][i], 2);
        size += pow(out[0][i], 2);
      }
    }
    for (int c = 0; c < 2; ++c) Check(kvrazor_cache_commit(caches[c], &seq[c], 1, threads));
    done += tokens;
  }

  for (int c = 0; c < 2; ++c) {
    kvrazor_cache_stats s;
    Check(kvrazor_cache_get_stats(caches[c], &s));
    printf("%5.2f bits per sealed value: %lld of %lld tokens sealed, %lld bytes of KV\n", s.bits_per_value,
           (long long)(s.sealed_pages_used * KVRAZOR_PAGE_TOKENS), (long long)s.num_tokens,
           (long long)(s.sealed_bytes + s.f16_side_bytes + s.window_bytes + s.exact_bytes));
    kvrazor_cache_destroy(caches[c]);
  }
  kvrazor_threads_destroy(threads);
  printf("attention outputs differ by %.1f %% (root mean square; random data is the hardest case)\n",
         100 * sqrt(error / size));
  return sqrt(error / size) < 0.2 ? 0 : 1;
}

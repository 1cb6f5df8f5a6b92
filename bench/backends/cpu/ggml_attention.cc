#include "bench/backends/cpu/ggml_attention.h"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"
#include "kvrazor/error.h"
#include "src/core/half.h"

namespace kvrazor::bench {
namespace {

/// The threads of all competitors of one size are one pool, as in llama.cpp.
ggml_threadpool* SharedPool(int num_threads) {
  static std::vector<ggml_threadpool*> pools(1025, nullptr);
  if (num_threads > 1024) throw Error("attend_bench: at most 1024 threads.");
  if (!pools[num_threads]) {
    ggml_threadpool_params params = ggml_threadpool_params_default(num_threads);
    params.poll =
        0;  // waiting threads sleep: between its turns a spinning pool would take the other competitors' cores
    pools[num_threads] = ggml_threadpool_new(&params);
  }
  return pools[num_threads];
}

void FillRandom(ggml_tensor* tensor) {
  std::minstd_rand random(1);
  std::vector<float> table(4096);
  std::normal_distribution<float> normal;
  for (float& x : table) x = normal(random);
  const int64_t count = ggml_nelements(tensor);
  if (tensor->type == GGML_TYPE_F32) {
    auto* data = static_cast<float*>(tensor->data);
    for (int64_t i = 0; i < count; ++i) data[i] = table[random() % table.size()];
  } else if (tensor->type == GGML_TYPE_F16) {
    auto* data = static_cast<uint16_t*>(tensor->data);
    for (int64_t i = 0; i < count; ++i) data[i] = F16FromF32(table[random() % table.size()]);
  } else {
    std::vector<float> row(static_cast<size_t>(count));
    for (float& x : row) x = table[random() % table.size()];
    ggml_quantize_chunk(tensor->type, row.data(), tensor->data, 0, count / tensor->ne[0], tensor->ne[0], nullptr);
  }
}

}  // namespace

struct GgmlAttention::State {
  ggml_context* context = nullptr;
  ggml_cgraph* graph = nullptr;
  ggml_cplan plan{};
  std::vector<uint8_t> work;
  int64_t cache_bytes = 0;
};

GgmlAttention::GgmlAttention(const AttentionShape& s, GgmlCache cache, int num_threads)
    : state_(std::make_unique<State>()) {
  const ggml_type type = cache == GgmlCache::kF16 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
  const int64_t values = int64_t{s.kv_len} * s.num_kv_heads * s.head_dim;
  const int64_t rows = int64_t{s.qo_len} * s.num_kv_heads * s.gqa_ratio;
  const int64_t bytes =
      2 * static_cast<int64_t>(ggml_row_size(type, values)) + 2 * int64_t{s.kv_len} * s.qo_len + 8 * rows * s.head_dim;
  state_->context = ggml_init({static_cast<size_t>(bytes + (int64_t{1} << 20)), nullptr, false});
  if (!state_->context)
    throw Error("attend_bench: ggml found no memory for a cache of " + std::to_string(bytes) + " bytes.");
  ggml_context* c = state_->context;
  ggml_tensor* k = ggml_new_tensor_3d(c, type, s.head_dim, s.num_kv_heads, s.kv_len);
  ggml_tensor* v = ggml_new_tensor_3d(c, type, s.head_dim, s.num_kv_heads, s.kv_len);
  ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, s.head_dim, s.qo_len, int64_t{s.num_kv_heads} * s.gqa_ratio);
  ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, s.kv_len, s.qo_len);
  FillRandom(k);
  FillRandom(v);
  FillRandom(q);
  auto* m = static_cast<uint16_t*>(mask->data);
  for (int i = 0; i < s.qo_len; ++i) {
    for (int j = 0; j < s.kv_len; ++j) m[int64_t{i} * s.kv_len + j] = j > s.kv_len - s.qo_len + i ? 0xfc00 : 0;
  }
  state_->cache_bytes = static_cast<int64_t>(ggml_nbytes(k) + ggml_nbytes(v));
  ggml_tensor* out = ggml_flash_attn_ext(c, q, ggml_permute(c, k, 0, 2, 1, 3), ggml_permute(c, v, 0, 2, 1, 3), mask,
                                         1.0f / std::sqrt(static_cast<float>(s.head_dim)), 0.0f, 0.0f);
  state_->graph = ggml_new_graph(c);
  ggml_build_forward_expand(state_->graph, out);
  state_->plan = ggml_graph_plan(state_->graph, num_threads, SharedPool(num_threads));
  state_->work.resize(state_->plan.work_size);
  state_->plan.work_data = state_->work.data();
}

GgmlAttention::~GgmlAttention() { ggml_free(state_->context); }

void GgmlAttention::Run() {
  if (ggml_graph_compute(state_->graph, &state_->plan) != GGML_STATUS_SUCCESS)
    throw Error("attend_bench: ggml's graph failed.");
}

int64_t GgmlAttention::cache_bytes() const { return state_->cache_bytes; }

}  // namespace kvrazor::bench

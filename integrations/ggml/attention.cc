#include "integrations/ggml/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "integrations/ggml/counters.h"
#include "src/ops/query_sampling.h"

namespace kvrazor::ggml {
namespace {

constexpr f16_bits kHidden = 0xfc00;  // -inf in a mask

struct Params {
  float scale = 1, max_bias = 0, softcap = 0;
};

Params ReadParams(const ggml_tensor* node) {
  Params p;
  std::memcpy(&p, node->op_params, sizeof(p));
  return p;
}

/// The slope of each head on the mask value, as ggml computes it.
std::vector<float> AlibiSlopes(float max_bias, int64_t num_heads) {
  const auto log2_heads = static_cast<float>(std::bit_floor(static_cast<uint64_t>(num_heads)));
  const float m0 = std::pow(2.0f, -max_bias / log2_heads);
  const float m1 = std::pow(2.0f, -max_bias / 2.0f / log2_heads);
  std::vector<float> slopes(static_cast<size_t>(num_heads));
  for (int64_t h = 0; h < num_heads; ++h) {
    const auto x = static_cast<float>(h);
    slopes[static_cast<size_t>(h)] = x < log2_heads ? std::pow(m0, x + 1) : std::pow(m1, 2 * (x - log2_heads) + 1);
  }
  return slopes;
}

/// Tokens of a page that have to be read: up to the last slot that was written to.
int UsedTokens(const TokenMask& written) {
  const uint64_t high = written.words[1];
  const uint64_t low = written.words[0];
  return high ? kPageTokens - std::countl_zero(high) : low ? 64 - std::countl_zero(low) : 0;
}

/// Pages of the first num_keys slots from first_slot on in which anything was written.
void ListPages(CacheSide& k, CacheSide& v, int64_t first_slot, int64_t num_keys, std::vector<AttendPage>& pages) {
  pages.clear();
  for (int64_t key = 0; key < num_keys; key += kPageTokens) {
    const int64_t p = (first_slot + key) / kPageTokens;
    TokenMask written = k.written(p);
    for (size_t w = 0; w < written.words.size(); ++w) written.words[w] |= v.written(p).words[w];
    const int used = static_cast<int>(std::min<int64_t>(UsedTokens(written), num_keys - key));
    if (used == 0) continue;
    AttendPage page;
    page.k = k.ReadOrZero(p);
    page.v = v.ReadOrZero(p);
    page.num_tokens = used;
    page.first_key = key;
    pages.push_back(page);
  }
}

void AddQueries(CacheLayer& layer, const Backend& backend, const QueryRows& q, int64_t qo_len, int64_t num_heads) {
  if (!layer.moment) return;
  if (const int stride = QueryStride(qo_len, layer.decode_steps))
    backend.AddQueries(*layer.moment, q, static_cast<int>(qo_len), static_cast<int>(num_heads), stride);
}

}  // namespace

const char* AttentionProblem(const ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3],
                    *sinks = node->src[4];
  const ggml_tensor* k_root = k->view_src ? k->view_src : k;
  const ggml_tensor* v_root = v->view_src ? v->view_src : v;
  const auto rows_of = [](const ggml_tensor* t, const ggml_tensor* root) {
    return t->nb[0] == 2 && t->nb[1] == root->nb[1] && t->nb[2] == 2 * static_cast<size_t>(t->ne[0]) &&
           t->ne[0] * t->ne[2] == root->ne[0] && (t->ne[3] == 1 || t->nb[3] == root->nb[2]) &&
           t->view_offs % root->nb[2] == 0;
  };
  if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || node->nb[0] != sizeof(float))
    return "queries are not rows of f32";
  if (!mask) return "attention has no mask";
  if (mask->type != GGML_TYPE_F16 || mask->ne[2] != 1 || mask->nb[0] != 2)
    return "the mask is not one f16 matrix for all heads";
  if (mask->ne[3] != 1 && mask->ne[3] != q->ne[3]) return "the mask does not suit the streams";
  if (sinks && (sinks->type != GGML_TYPE_F32 || sinks->ne[0] != q->ne[2]))
    return "attention sinks are not one f32 a head";
  if (!rows_of(k, k_root) || !rows_of(v, v_root))
    return "attention does not read whole heads, slot by slot (transposed or partial cache)";
  if (k->ne[2] != v->ne[2] || k->ne[1] != v->ne[1] || k->ne[3] != q->ne[3])
    return "keys and values differ in heads, length or streams";
  if (q->ne[2] % k->ne[2] != 0) return "query heads are no multiple of key heads";
  return nullptr;
}

void RunAttention(const ggml_tensor* node, CacheLayer& layer, Executor& executor) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *mask = node->src[3], *sinks = node->src[4];
  CacheSide& keys = *layer.side(Side::kKey).packed;
  CacheSide& values = *layer.side(Side::kValue).packed;
  const Backend& backend = keys.backend();
  const Params params = ReadParams(node);
  const std::vector<float> slopes = params.max_bias > 0 ? AlibiSlopes(params.max_bias, q->ne[2]) : std::vector<float>();
  thread_local std::vector<AttendPage> pages;

  for (int64_t s = 0; s < q->ne[3]; ++s) {
    const auto stream_offset = static_cast<int64_t>(k->view_offs) + s * static_cast<int64_t>(k->nb[3]);
    ListPages(keys, values, stream_offset / keys.row_bytes(), k->ne[1], pages);

    AttendArgs args;
    args.format = &layer.format;
    args.pages = pages;
    args.num_qo_heads = static_cast<int>(q->ne[2]);
    args.qo_len = static_cast<int>(q->ne[1]);
    args.softmax_scale = params.scale;
    args.logit_softcap = params.softcap;
    args.q.data = reinterpret_cast<const float*>(static_cast<const char*>(q->data) + s * q->nb[3]);
    args.q.token_stride = static_cast<int64_t>(q->nb[1] / sizeof(float));
    args.q.head_stride = static_cast<int64_t>(q->nb[2] / sizeof(float));
    args.out.data = reinterpret_cast<float*>(static_cast<char*>(node->data) + s * node->nb[3]);
    args.out.token_stride = static_cast<int64_t>(node->nb[2] / sizeof(float));
    args.out.head_stride = static_cast<int64_t>(node->nb[1] / sizeof(float));
    args.mask =
        reinterpret_cast<const f16_bits*>(static_cast<const char*>(mask->data) + (s % mask->ne[3]) * mask->nb[3]);
    args.mask_stride = static_cast<int64_t>(mask->nb[1] / sizeof(f16_bits));
    args.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
    args.sink_logits = sinks ? static_cast<const float*>(sinks->data) : nullptr;
    backend.Attend(args, executor);
    AddQueries(layer, backend, args.q, q->ne[1], q->ne[2]);
  }
  Count(GlobalCounters().attends);
}

int CountSequences(const ggml_tensor* mask, const std::vector<int64_t>& slots, int64_t slots_per_stream) {
  int sequences = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const auto* row = reinterpret_cast<const f16_bits*>(static_cast<const char*>(mask->data) + i * mask->nb[1]);
    bool starts = true;
    for (size_t j = i; starts && j-- > 0;) {  // its neighbour is nearly always of the same sequence
      const int64_t key = slots[j] % slots_per_stream;
      starts = key >= mask->ne[0] || row[key] == kHidden;
    }
    sequences += starts;
  }
  return std::max(sequences, 1);
}

int CountHiddenPages(const ggml_tensor* mask, const std::vector<int64_t>& pages) {
  int hidden = 0;
  for (const int64_t p : pages) {
    const int64_t first = p * kPageTokens;
    const int64_t last = std::min(first + kPageTokens, mask->ne[0]);
    if (first >= last) continue;
    bool seen = false;
    for (int64_t i = mask->ne[1]; !seen && i-- > 0;) {  // the last token sees the most
      const auto* row = reinterpret_cast<const f16_bits*>(static_cast<const char*>(mask->data) +
                                                          i * static_cast<int64_t>(mask->nb[1]));
      seen = std::any_of(row + first, row + last, [](f16_bits x) { return x != kHidden; });
    }
    hidden += !seen;
  }
  return hidden;
}

}  // namespace kvrazor::ggml

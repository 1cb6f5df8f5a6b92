#include "eval/shadow.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "eval/kv_nodes.h"
#include "kvrazor/error.h"
#include "src/core/aligned_bytes.h"
#include "src/core/half.h"
#include "src/ops/backend.h"
#include "src/ops/query_sampling.h"

namespace kvrazor::eval {
namespace {

constexpr int kHeadSizes[] = {32, 64, 128, 256};  // that pages have

/// The head size of pages for a model's head; its own if it is too large for any, which MakePageLayout then says.
int PageHeadDim(int64_t head_dim) {
  for (const int size : kHeadSizes) {
    if (head_dim <= size) return size;
  }
  return static_cast<int>(head_dim);
}

const char* Name(Side side) { return side == Side::kKey ? "keys" : "values"; }

/// Heads of `from` values become heads of `to`: cut, or filled up with zeros.
///   in [rows][from], out [rows][to]
template <class T>
void Resize(const T* in, int64_t num_heads, int from, int to, T* out) {
  for (int64_t i = 0; i < num_heads; ++i, in += from, out += to)
    std::fill(std::copy_n(in, std::min(from, to), out), out + to, T{});
}

}  // namespace

/// One side of one page.
struct ShadowCache::Job {
  Layer* layer = nullptr;
  Tensor* tensor = nullptr;
  int64_t page = 0;
  std::vector<f16_bits> rows;  // [128][num_kv_heads][head_dim], the model's

  size_t offset() const { return static_cast<size_t>(page * kPageTokens * tensor->row_bytes()); }
  void Read() {
    rows.resize(static_cast<size_t>(kPageTokens * tensor->row_values));
    ggml_backend_tensor_get(tensor->root, rows.data(), offset(), rows.size() * sizeof(f16_bits));
  }
  void Write() const { ggml_backend_tensor_set(tensor->root, rows.data(), offset(), rows.size() * sizeof(f16_bits)); }
  void Quantize();
  void QuantizeBeforeRope();
};

void ShadowCache::Job::QuantizeBeforeRope() {
  const BeforeRope& own = *layer->before_rope;
  const int64_t num_slots = layer->pages->num_slots();
  std::vector<int32_t> positions;
  for (int i = 0; i < own.rope.positions_per_token(); ++i) {
    const auto first = own.positions.begin() + i * num_slots + page * kPageTokens;
    positions.insert(positions.end(), first, first + kPageTokens);
  }
  eval::QuantizeBeforeRope(layer->recipe.k, {tensor->layout.shape.num_kv_heads, tensor->head_dim}, own.order, own.rope,
                           positions, layer->pages->exact(page), rows.data());
}

void ShadowCache::Job::Quantize() {
  if (tensor == &layer->keys && layer->before_rope) return QuantizeBeforeRope();
  const PageLayout& layout = tensor->layout;
  const int64_t heads = kPageTokens * int64_t{layout.shape.num_kv_heads};
  const int page_dim = layout.shape.head_dim;
  std::vector<f16_bits> filled(static_cast<size_t>(heads * page_dim));
  Resize(rows.data(), heads, tensor->head_dim, page_dim, filled.data());

  const TokenMask exact = layer->pages->exact(page);
  const AlignedBytes sealed(layout.page_bytes);
  CpuBackend().Seal(layout, filled.data(), exact, layer->moment.get(), sealed.get());
  std::vector<float> back(filled.size());
  PageSide side;
  side.sealed = sealed.get();  // exact tokens' codes mean nothing: their rows are left as they are below
  CpuBackend().Dequantize(layout, side, 0, kPageTokens, back.data());

  std::vector<float> own(rows.size());
  Resize(back.data(), heads, page_dim, tensor->head_dim, own.data());
  const int64_t width = tensor->row_values;
  for (int t = 0; t < kPageTokens; ++t) {
    if (exact.Test(t)) continue;
    std::transform(own.begin() + t * width, own.begin() + (t + 1) * width, rows.begin() + t * width, F16FromF32);
  }
}

ShadowCache::ShadowCache(const Recipe& recipe, int num_layers, int threads, const Calibration* calibration)
    : recipe_(recipe.ForModel(num_layers)), calibration_(calibration), executor_(MakeThreadPool(std::max(threads, 1))) {
  for (int layer = 0; !calibration && layer < num_layers; ++layer) {
    if (recipe_.ForLayer(layer).k.before_rope)
      throw Error(fmt::format(
          "'{}' needs an order of the model's key channels. Make it once with kvrazor calibrate MODEL TEXT -o FILE "
          "and give it with --calibration FILE.",
          ToText(recipe)));
  }
}

bool ShadowCache::OnNode(ggml_tensor* node, bool ask, void* shadow) {
  ShadowCache& self = *static_cast<ShadowCache*>(shadow);
  if (self.failure_) return false;
  try {
    if (ask) return self.Wants(node);
    self.See(node);
    return true;
  } catch (...) {
    self.failure_ = std::current_exception();  // EndBatch throws it
    return false;
  }
}

bool ShadowCache::Wants(const ggml_tensor* node) const {
  if (node->op == GGML_OP_ROPE) return positions_.empty();
  return WrittenCache(node) || KeysReadBy(node);
}

void ShadowCache::See(ggml_tensor* node) {
  if (node->op == GGML_OP_ROPE) {
    if (positions_.empty() && node->src[1]->type == GGML_TYPE_I32) {
      positions_ = ReadIntegers(node->src[1]);
      positions_from_ = node->src[1];
    }
    return;
  }
  if (const std::optional<CacheTensorName> written = WrittenCache(node)) {
    if (!written->kind.empty())
      throw Error(fmt::format("shadow mode: layer {} has a cache of the kind '{}', which no recipe describes.",
                              written->layer, written->kind));
    SeeRows(node, written->layer, written->side);
  }
  if (ggml_tensor* keys = KeysReadBy(node)) SeeAttention(node, keys, CacheBehind(keys)->layer);
}

ShadowCache::Layer& ShadowCache::LayerOf(int index) {
  const auto [at, is_new] = layers_.try_emplace(index);
  if (is_new) {
    at->second.recipe = recipe_.ForLayer(index);
    at->second.rule = MakeExactRule(at->second.recipe);
  }
  return at->second;
}

void ShadowCache::SeeRows(const ggml_tensor* set_rows, int index, Side side) {
  Layer& layer = LayerOf(index);
  Tensor& tensor = side == Side::kKey ? layer.keys : layer.values;
  ggml_tensor* root = set_rows->view_src;
  const auto refuse = [&](const std::string& why) {
    return Error(fmt::format("shadow mode: layer {} {}: {}", index, Name(side), why));
  };
  if (tensor.root && tensor.root != root) throw refuse("two tensors of the cache have the same name.");
  if (root->type != GGML_TYPE_F16)
    throw refuse(fmt::format("the cache type is {}; only f16 rows can be overwritten.", ggml_type_name(root->type)));
  if (root->ne[2] != 1) throw refuse("the cache has several streams; one sequence is measured at a time.");
  if (set_rows->ne[0] != root->ne[0])
    throw refuse(
        "they are stored transposed, value by value (no flash attention); a page of tokens is not a block then.");
  tensor.root = root;
  tensor.row_values = root->ne[0];
  if (side == Side::kValue) return;

  if (!layer.pages) layer.pages = std::make_unique<ShadowPages>(root->ne[1], recipe_.residual_tokens);
  const std::vector<int64_t> slots = SlotsOf(set_rows);
  for (size_t r = 0; r < slots.size(); ++r) {
    const int64_t position = r < positions_.size() ? positions_[r] : slots[r];
    layer.pages->Write(slots[r], position < layer.recipe.sink_tokens);
  }
  if (layer.recipe.k.before_rope) SeeBeforeRope(layer, index, set_rows, slots);
}

void ShadowCache::SeeBeforeRope(Layer& layer, int index, const ggml_tensor* set_rows,
                                const std::vector<int64_t>& slots) {
  try {
    if (!layer.before_rope) {
      const auto found = calibration_->layers.find(index);
      if (found == calibration_->layers.end()) throw Error("the calibration file has no order for it.");
      layer.before_rope = std::make_unique<BeforeRope>();
      layer.before_rope->order = found->second.order;
      layer.before_rope->rope = RopeOfKeys(set_rows);
      const size_t per_token = static_cast<size_t>(layer.before_rope->rope.positions_per_token());
      layer.before_rope->positions.resize(per_token * static_cast<size_t>(layer.pages->num_slots()));
    }
    BeforeRope& own = *layer.before_rope;
    if (!own.rope.is_none()) {
      if (RopeBehind(set_rows)->src[1] != positions_from_) throw Error("its keys have positions of their own.");
      if (positions_.size() != slots.size() * static_cast<size_t>(own.rope.positions_per_token()))
        throw Error("RoPE has another number of positions than there are keys.");
      for (size_t i = 0; i < positions_.size(); ++i)
        own.positions[i / slots.size() * static_cast<size_t>(layer.pages->num_slots()) +
                      static_cast<size_t>(slots[i % slots.size()])] = positions_[i];
    }
    const ggml_tensor* input = LayerInput(set_rows);
    std::vector<float> x(static_cast<size_t>(ggml_nelements(input)));
    ggml_backend_tensor_get(input, x.data(), 0, x.size() * sizeof(float));
    own.massive.Add(x.data(), input->ne[0], slots);
  } catch (const Error& e) {
    throw Error(fmt::format("shadow mode: layer {}: {}", index, e.what()));
  }
}

void ShadowCache::SeeAttention(const ggml_tensor* node, ggml_tensor* keys, int index) {
  Layer& layer = LayerOf(index);
  if (node->op == GGML_OP_FLASH_ATTN_EXT && RootOf(node->src[2]) == RootOf(keys))
    throw Error(
        fmt::format("shadow mode: layer {} has latent attention (MLA): keys and values are one tensor, which no "
                    "recipe quantizes.",
                    index));
  if (layer.keys.head_dim == 0) SetHeads(layer, index, node, keys);
  AddQueries(layer, node);
}

void ShadowCache::SetHeads(Layer& layer, int index, const ggml_tensor* attention, const ggml_tensor* keys) {
  if (!layer.values.root)
    throw Error(
        fmt::format("shadow mode: layer {} stores keys and no values (latent attention, MLA), which no recipe "
                    "quantizes.",
                    index));
  const int num_heads = static_cast<int>(keys->ne[2]);
  const auto set = [&](Tensor& tensor, const SideRecipe& recipe, Side side) {
    tensor.head_dim = static_cast<int>(tensor.root->ne[0] / num_heads);
    SideRecipe stored = recipe;
    stored.before_rope = false;  // as many bytes as keys after RoPE
    tensor.layout = MakePageLayout(stored, side, {num_heads, PageHeadDim(tensor.head_dim)});
  };
  if (layer.keys.root->ne[0] != keys->ne[0] * num_heads || layer.values.root->ne[0] % num_heads != 0)
    throw Error(fmt::format(
        "shadow mode: layer {} reads parts of its keys or values only; which heads they have is not known.", index));
  set(layer.keys, layer.recipe.k, Side::kKey);
  set(layer.values, layer.recipe.v, Side::kValue);
  if (layer.before_rope) {
    const HeadShape shape{num_heads, layer.keys.head_dim};
    CheckRotateKvShape(shape);
    if (calibration_->layers.at(index).shape != shape ||
        (!layer.before_rope->rope.is_none() && layer.before_rope->rope.head_dim() != shape.head_dim))
      throw Error(
          fmt::format("shadow mode: layer {}: the calibration file, RoPE and the cache differ in heads.", index));
  }
  if (layer.recipe.k.codec == Codec::kRazorKey) layer.moment = std::make_unique<SecondMoment>(layer.keys.layout.shape);
}

void ShadowCache::AddQueries(Layer& layer, const ggml_tensor* attention) {
  if (!layer.moment) return;
  const ggml_tensor* q = QueriesOf(attention);  // [head_dim, tokens, num_qo_heads] f32
  const int64_t num_tokens = q->ne[1], num_heads = q->ne[2];
  const int stride = QueryStride(num_tokens, layer.decode_steps);
  if (stride == 0) return;
  if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[0] != layer.keys.head_dim)
    throw Error("shadow mode: the queries are not rows of f32 of the keys' head size.");
  const int from = layer.keys.head_dim, to = layer.keys.layout.shape.head_dim;
  std::vector<float> rows(static_cast<size_t>(num_tokens * num_heads * to));  // heads filled up with zeros
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t h = 0; h < num_heads; ++h)
      ggml_backend_tensor_get(q, rows.data() + (t * num_heads + h) * to,
                              static_cast<size_t>(t) * q->nb[1] + static_cast<size_t>(h) * q->nb[2],
                              static_cast<size_t>(from) * sizeof(float));
  }
  const QueryRows queries = {.data = rows.data(), .token_stride = num_heads * to, .head_stride = to};
  CpuBackend().AddQueries(*layer.moment, queries, static_cast<int>(num_tokens), static_cast<int>(num_heads), stride);
}

void ShadowCache::EndBatch() {
  positions_.clear();
  if (failure_) std::rethrow_exception(failure_);
  if (layers_.empty())
    throw Error(
        "shadow mode: the model keeps no keys and values (a recurrent model): there is nothing to "
        "quantize.");
  for (const auto& [index, layer] : layers_) {
    if (layer.keys.head_dim == 0)
      throw Error(fmt::format("shadow mode: no attention was seen that reads the keys of layer {}.", index));
  }
  SealDue();
}

/// What else than sinks keeps its 16 bits, once a page's keys are all there.
void ShadowCache::ChooseExact(Layer& layer, int64_t page) {
  if (layer.rule.chooses()) {
    Job keys = {.layer = &layer, .tensor = &layer.keys, .page = page, .rows = {}};
    keys.Read();
    layer.pages->Choose(page, kvrazor::ChooseExact(layer.rule, keys.rows.data(), layer.keys.row_values,
                                                   layer.pages->exact(page), layer.trace));
  }
  if (!layer.before_rope) return;
  TokenMask massive;
  for (int t = 0; t < kPageTokens; ++t) {
    if (layer.before_rope->massive.Contains(page * kPageTokens + t)) massive.Set(t);
  }
  layer.pages->Choose(page, massive);
}

void ShadowCache::SealDue() {
  std::vector<Job> jobs;
  for (auto& [index, layer] : layers_) {
    for (const int64_t page : layer.pages->Due()) {
      ChooseExact(layer, page);
      for (Tensor* tensor : {&layer.keys, &layer.values}) {
        if (!tensor->seals()) continue;
        jobs.push_back({.layer = &layer, .tensor = tensor, .page = page, .rows = {}});
        jobs.back().Read();
      }
    }
  }
  executor_->Run(std::ssize(jobs), [&](int64_t i, int) { jobs[static_cast<size_t>(i)].Quantize(); });
  for (const Job& job : jobs) job.Write();
  for (auto& [index, layer] : layers_) {
    if (!layer.keys.seals() && !layer.values.seals()) continue;
    for (const int64_t page : layer.pages->Due()) layer.pages->MarkSealed(page);
  }
}

KvUsage ShadowCache::Usage() const {
  KvUsage usage;
  int64_t page_values = 0, page_bytes = 0;
  for (const auto& [index, layer] : layers_) {
    const int64_t sealed = layer.pages->num_sealed(), written = layer.pages->num_written();
    for (const Tensor* tensor : {&layer.keys, &layer.values}) {
      const int64_t sealed_rows = tensor->seals() ? sealed * kPageTokens : 0;
      usage.f16_bytes += written * tensor->row_bytes();
      usage.staging_bytes += (written - sealed_rows) * tensor->row_bytes();
      usage.sealed_bytes += sealed_rows / kPageTokens * tensor->layout.page_bytes;
      if (tensor->seals()) usage.sink_bytes += layer.pages->num_sealed_exact() * tensor->row_bytes();
      page_values += sealed_rows * tensor->row_values;
      page_bytes += sealed_rows / kPageTokens * tensor->layout.page_bytes;
      if (tensor->seals()) page_bytes += layer.pages->num_sealed_chosen() * tensor->row_bytes();
    }
    if (layer.moment) usage.table_bytes += layer.moment->bytes();
  }
  usage.num_layers = std::ssize(layers_);
  usage.bytes = usage.sealed_bytes + usage.staging_bytes + usage.sink_bytes + usage.table_bytes;
  usage.page_bits_per_value =
      page_values > 0 ? 8.0 * static_cast<double>(page_bytes) / static_cast<double>(page_values) : 0;
  return usage;
}

}  // namespace kvrazor::eval

#include "integrations/ggml/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "ggml-backend-impl.h"
#include "ggml.h"
#include "integrations/ggml/allocation.h"
#include "integrations/ggml/attention.h"
#include "integrations/ggml/kv_buffer.h"
#include "integrations/ggml/log.h"
#include "kvrazor/error.h"

namespace kvrazor::ggml {
namespace {

std::mutex g_caches_mutex;
std::vector<const KvCache*> g_caches;

const char* SideName(Side side) { return side == Side::kKey ? "keys" : "values"; }

}  // namespace

void ForEachCache(const std::function<void(const KvCache&)>& fn) {
  const std::lock_guard lock(g_caches_mutex);
  for (const KvCache* cache : g_caches) fn(*cache);
}

std::string& PendingRefusal() {
  thread_local std::string refusal;
  return refusal;
}

CacheTensor* PackedTensor(const ggml_tensor* tensor) {
  if (!tensor) return nullptr;
  const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
  if (!IsCacheBuffer(root->buffer) || !root->extra) return nullptr;
  auto* state = static_cast<CacheTensor*>(root->extra);
  return state->packed ? state : nullptr;
}

KvCache::KvCache(std::shared_ptr<const Settings> settings, const Backend& backend, int64_t buffer_bytes)
    : settings_(std::move(settings)),
      backend_(backend),
      plain_(AddressRange::Reserve(buffer_bytes, AddressRange::Access::kReadWrite)),
      planned_bytes_(buffer_bytes) {
  const std::lock_guard lock(g_caches_mutex);
  g_caches.push_back(this);
}

KvCache::~KvCache() {
  {
    const std::lock_guard lock(g_caches_mutex);
    g_caches.erase(std::remove(g_caches.begin(), g_caches.end(), this), g_caches.end());
  }
  layers_.clear();  // sides give their pages back to the pools
}

StagingPool& KvCache::PoolFor(int64_t page_bytes) {
  std::unique_ptr<StagingPool>& pool = pools_[page_bytes];
  if (!pool) pool = std::make_unique<StagingPool>(page_bytes, meter_);
  return *pool;
}

bool KvCache::AddTensor(ggml_tensor* tensor) {
  bool keys_plain = false;
  Placement placement = Place(tensor, *settings_, false);
  if (placement.kind == Placement::Kind::kPacked && placement.side == Side::kValue) {
    const auto it = layers_.find(placement.layer);
    keys_plain = it != layers_.end() && it->second.side(Side::kKey).root && !it->second.side(Side::kKey).packed;
    if (keys_plain) placement = Place(tensor, *settings_, true);
  }
  if (placement.kind == Placement::Kind::kNotACache) {
    others_.push_back(tensor);
    return false;
  }
  const std::lock_guard lock(g_caches_mutex);
  const auto [at, is_new] = layers_.try_emplace(placement.layer);
  CacheLayer& layer = at->second;
  if (is_new) meter_.Add(sizeof(CacheLayer));
  layer.index = placement.layer;
  layer.recipe = settings_->recipe ? settings_->recipe->ForLayer(placement.layer) : Recipe();
  CacheTensor& state = layer.side(placement.side);
  state.cache = this;
  state.layer = &layer;
  state.side = placement.side;
  state.root = tensor;
  state.reason = placement.reason;
  tensor->extra = &state;
  if (placement.kind == Placement::Kind::kPlain) {
    others_.push_back(tensor);
    meter_.Add(static_cast<int64_t>(ggml_nbytes(tensor)));
    SayPlain(state);
    return false;
  }
  const CacheSide::Shape shape{placement.side, placement.layer, tensor->ne[0], tensor->ne[1], tensor->ne[2]};
  state.view = AddressRange::Reserve(static_cast<int64_t>(ggml_nbytes(tensor)), AddressRange::Access::kNone);
  state.packed = std::make_unique<CacheSide>(shape, layer.recipe, PoolFor(kPageTokens * tensor->ne[0] * 2), backend_);
  tensor->data = state.view.data();
  return true;
}

void KvCache::Learn(const ggml_tensor* attention) {
  const ggml_tensor* k = attention->src[1];
  const ggml_tensor* v = attention->src[2];
  CacheTensor* kt = PackedTensor(k);
  CacheTensor* vt = PackedTensor(v);
  if (!kt && !vt) return;
  if (kt && kt == vt) {
    MakePlain(*kt, "keys and values are one tensor (MLA)");
    return;
  }
  std::string problem;
  if (!kt || !vt) {
    problem = std::string("the ") + (kt ? "values" : "keys") + " of the layer are not packed";
  } else if (kt->layer != vt->layer || kt->side != Side::kKey) {
    problem = "attention mixes the tensors of two layers";
  } else if (kt->layer->ready && kt->layer->format.k.shape.head_dim == k->ne[0] &&
             kt->layer->format.v.shape.head_dim == v->ne[0]) {
    return;
  } else if (kt->layer->ready) {
    problem = "two attention nodes read the layer with different head sizes";
  } else if (const char* reason = AttentionProblem(attention)) {
    problem = reason;
  } else {
    try {
      SetFormat(*kt->layer, attention);
      SayWhenReady();
      return;
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  if (kt) MakePlain(*kt, problem);
  if (vt) MakePlain(*vt, problem);
}

void KvCache::SetFormat(CacheLayer& layer, const ggml_tensor* attention) {
  const auto layout = [&](const ggml_tensor* t, Side side, const SideRecipe& recipe) {
    const HeadShape shape{static_cast<int>(t->ne[2]), static_cast<int>(t->ne[0])};
    return MakePageLayout(recipe, side, shape);
  };
  const LayerFormat format{layout(attention->src[1], Side::kKey, layer.recipe.k),
                           layout(attention->src[2], Side::kValue, layer.recipe.v)};
  // Attention of no tokens: throws here, not in the middle of a text, if the backend has no kernel for these heads.
  AttendArgs none;
  none.format = &format;
  none.num_qo_heads = static_cast<int>(attention->src[0]->ne[2]);
  backend_.Attend(none, SerialExecutor());
  const WorkspaceBytes workspace = backend_.Workspace(format, none.num_qo_heads);
  workspace_.shared = std::max(workspace_.shared, workspace.shared);
  workspace_.per_thread = std::max(workspace_.per_thread, workspace.per_thread);
  const std::lock_guard lock(g_caches_mutex);
  layer.format = format;
  layer.side(Side::kKey).packed->SetLayout(format.k);
  layer.side(Side::kValue).packed->SetLayout(format.v);
  if (layer.recipe.k.codec == Codec::kRazorKey) {
    layer.moment = std::make_unique<SecondMoment>(format.k.shape);
    meter_.Add(layer.moment->bytes());
  }
  layer.ready = true;
}

void KvCache::Refuse(const std::string& what) {
  if (refusal_.empty()) refusal_ = what;
  PendingRefusal() = refusal_;
}

void KvCache::SayPlain(const CacheTensor& tensor) {
  if (settings_->quiet || !said_.insert(tensor.reason).second) return;
  LogWarning("layer %d %s (and every other layer with the same problem) stay in %s: %s", tensor.layer->index,
             SideName(tensor.side), ggml_type_name(tensor.root->type), tensor.reason.c_str());
}

void KvCache::SayWhenReady() const {
  if (settings_->quiet) return;
  int64_t num_packed = 0, bytes = 0, values = 0;
  for (const auto& [index, layer] : layers_) {
    if (layer.packed() && !layer.ready) return;
    if (!layer.ready) continue;
    ++num_packed;
    for (const PageLayout* layout : {&layer.format.k, &layer.format.v}) {
      bytes += layout->page_bytes ? layout->page_bytes : layout->f16_page_bytes();
      values += kPageTokens * layout->row_values();
    }
  }
  LogInfo("%d of %d layers packed with recipe %s, %.3f bits per value in sealed pages", static_cast<int>(num_packed),
          static_cast<int>(layers_.size()), ToText(*settings_->recipe).c_str(),
          8.0 * static_cast<double>(bytes) / static_cast<double>(values));
  LogInfo("workspace beside the cache: at most %.2f MiB, and %.2f MiB for each thread",
          static_cast<double>(workspace_.shared) / (1 << 20), static_cast<double>(workspace_.per_thread) / (1 << 20));
}

/// Sizes that were not known when the buffer was made (heads, chunks of a prompt, layers that turned out plain) count
/// from now on.
void KvCache::SetBufferBytes(const CacheBytes& now) {
  if (buffer_) buffer_->size = static_cast<size_t>(std::max(planned_bytes_, now.peak));
}

void KvCache::MakePlain(CacheTensor& tensor, const std::string& reason) {
  if (!tensor.packed) return;
  {
    const std::lock_guard lock(g_caches_mutex);
    tensor.view.SetAccess(AddressRange::Access::kReadWrite);
    CacheSide& packed = *tensor.packed;
    auto* rows = reinterpret_cast<f16_bits*>(tensor.view.data());
    for (int64_t p = 0; p < packed.num_pages(); ++p) {
      if (packed.state(p) == PageState::kEmpty) continue;
      packed.ReadRows(p * kPageTokens, (p + 1) * kPageTokens, rows + p * kPageTokens * packed.shape().row_values);
    }
    meter_.Add(static_cast<int64_t>(ggml_nbytes(tensor.root)));  // while the pages are still there
    tensor.packed.reset();
    tensor.reason = reason;
    tensor.layer->ready = false;
  }
  SayPlain(tensor);
  if (settings_->require)
    Refuse("layer " + std::to_string(tensor.layer->index) + " " + SideName(tensor.side) + ": " + reason);
  Publish();
}

void KvCache::Clear(uint8_t value) {
  for (auto& [index, layer] : layers_) {
    for (CacheTensor& tensor : layer.sides) {
      if (tensor.packed) {
        tensor.packed->Clear();
      } else if (tensor.view.data()) {
        std::memset(tensor.view.data(), value, ggml_nbytes(tensor.root));
      }
    }
    if (layer.moment)
      *layer.moment = SecondMoment(layer.moment->shape());  // results do not depend on what was read before
    layer.decode_steps = 0;
  }
  for (ggml_tensor* tensor : others_) std::memset(tensor->data, value, ggml_nbytes(tensor));
  Publish();
}

void KvCache::Publish() {
  CacheBytes b;
  int64_t loading = 0;
  for (const auto& [index, layer] : layers_) {
    b.table += static_cast<int64_t>(sizeof(layer));
    loading += layer.moment_parts.held_bytes();
    for (const CacheTensor& tensor : layer.sides) {
      if (!tensor.root) continue;
      loading += static_cast<int64_t>(tensor.inbox.bytes.capacity() + tensor.inbox.slots.capacity() * sizeof(int64_t));
      b.f16_equivalent += ggml_nelements(tensor.root) * 2;
      if (!tensor.packed) {
        b.other += static_cast<int64_t>(ggml_nbytes(tensor.root));
        continue;
      }
      b.packed += tensor.packed->packed_bytes();
      b.exact += tensor.packed->exact_bytes();
      b.table += tensor.packed->table_bytes();
      b.sealed_values += tensor.packed->sealed_pages() * kPageTokens * tensor.packed->shape().row_values;
      b.sealed_bytes +=
          tensor.packed->sealed_pages() * tensor.packed->layout().page_bytes + tensor.packed->chosen_bytes();
    }
    if (layer.moment) b.table += layer.moment->bytes();
  }
  for (const auto& [bytes, pool] : pools_) {
    b.staging += pool->committed_bytes();
    b.staging_peak += pool->peak_bytes();
    b.table += pool->table_bytes();
  }
  meter_.Add(loading - loading_bytes_);
  loading_bytes_ = loading;
  b.table += loading;
  b.total = meter_.now();
  b.peak = meter_.peak();
  SetBufferBytes(b);
  const auto set = [](std::atomic<int64_t>& to, int64_t value) { to.store(value, std::memory_order_relaxed); };
  set(published_.f16_equivalent, b.f16_equivalent);
  set(published_.packed, b.packed);
  set(published_.staging, b.staging);
  set(published_.staging_peak, b.staging_peak);
  set(published_.exact, b.exact);
  set(published_.table, b.table);
  set(published_.other, b.other);
  set(published_.total, b.total);
  set(published_.peak, b.peak);
  set(published_.sealed_values, b.sealed_values);
  set(published_.sealed_bytes, b.sealed_bytes);
}

CacheBytes KvCache::bytes() const {
  const auto get = [](const std::atomic<int64_t>& from) { return from.load(std::memory_order_relaxed); };
  CacheBytes b;
  b.f16_equivalent = get(published_.f16_equivalent);
  b.packed = get(published_.packed);
  b.staging = get(published_.staging);
  b.staging_peak = get(published_.staging_peak);
  b.exact = get(published_.exact);
  b.table = get(published_.table);
  b.other = get(published_.other);
  b.total = get(published_.total);
  b.peak = get(published_.peak);
  b.sealed_values = get(published_.sealed_values);
  b.sealed_bytes = get(published_.sealed_bytes);
  return b;
}

}  // namespace kvrazor::ggml

#include "integrations/ggml/graph_walk.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "integrations/ggml/attention.h"
#include "integrations/ggml/counters.h"
#include "integrations/ggml/generic_node.h"
#include "integrations/ggml/kv_cache.h"
#include "integrations/ggml/log.h"
#include "integrations/ggml/store_rows.h"
#include "integrations/ggml/tensor_access.h"

namespace kvrazor::ggml {
namespace {

/// A chunk of this many tokens seals its pages layer by layer, so that only one layer's pages are in 16 bits at a time.
/// Fewer tokens fill at most one page a side: all layers are sealed together when the graph is done, which gives every
/// thread work.
constexpr int64_t kChunkTokens = kPageTokens;

bool IsNoOp(const ggml_tensor* t) {
  return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE ||
         t->op == GGML_OP_TRANSPOSE;
}

bool Runs(const ggml_tensor* t) { return !IsNoOp(t) && (t->flags & GGML_TENSOR_FLAG_COMPUTE); }

class Walk {
 public:
  Walk(ggml_cgraph* graph, Executor& executor, const std::function<ggml_status(ggml_cgraph*)>& inner)
      : graph_(graph), executor_(executor), inner_(inner) {}

  ggml_status Run() {
    Count(GlobalCounters().graphs);
    SavePositions();
    for (int i = 0; i < graph_->n_nodes; ++i) {
      ggml_tensor* node = graph_->nodes[i];
      if (!Runs(node)) continue;
      CollectTensors(node);
      if (used_.empty()) continue;
      if (const ggml_status status = Forward(i); status != GGML_STATUS_SUCCESS) return status;
      if (const ggml_status status = RunNode(i); status != GGML_STATUS_SUCCESS) return status;
      begin_ = i + 1;
    }
    const ggml_status status = Forward(graph_->n_nodes);
    SealDuePages(due_, executor_);
    for (KvCache* cache : touched_) cache->Publish();
    return status;
  }

 private:
  /// Positions are inputs of the graph: their memory may be in use for something else by the time that rows are stored.
  void SavePositions() {
    for (int i = 0; i < graph_->n_nodes; ++i) {
      const ggml_tensor* node = graph_->nodes[i];
      if (node->op != GGML_OP_SET_ROWS) continue;
      const CacheTensor* tensor = PackedTensor(node);
      if (!tensor || tensor->side != Side::kKey || tensor->packed->exact_rule().sinks == 0) continue;
      const ggml_tensor* positions = PositionsOf(node);
      if (!positions || FindPositions(positions)) continue;
      const auto* data = static_cast<const int32_t*>(positions->data);
      positions_.emplace_back(positions, std::vector<int32_t>(data, data + positions->ne[0]));
    }
  }

  const std::vector<int32_t>* FindPositions(const ggml_tensor* tensor) const {
    for (const auto& [known, values] : positions_) {
      if (known == tensor) return &values;
    }
    return nullptr;
  }

  void CollectTensors(const ggml_tensor* node) {
    used_.clear();
    written_ = PackedTensor(node);
    if (written_) used_.push_back(written_);
    for (const ggml_tensor* source : node->src) {
      CacheTensor* tensor = PackedTensor(source);
      if (tensor && std::find(used_.begin(), used_.end(), tensor) == used_.end()) used_.push_back(tensor);
    }
  }

  /// Gives nodes [begin_, end) to the inner backend.
  ggml_status Forward(int end) {
    while (begin_ < end && !Runs(graph_->nodes[begin_])) ++begin_;
    if (begin_ >= end) return GGML_STATUS_SUCCESS;
    Count(GlobalCounters().ranges);
    if (begin_ == 0 && end == graph_->n_nodes) return inner_(graph_);
    ggml_cgraph range = ggml_graph_view(graph_, begin_, end);
    begin_ = end;
    return inner_(&range);
  }

  ggml_status RunInner(int i) {
    ggml_cgraph one = ggml_graph_view(graph_, i, i + 1);
    return inner_(&one);
  }

  ggml_status RunNode(int i) {
    ggml_tensor* node = graph_->nodes[i];
    InspectNode(node);
    for (CacheTensor* tensor : used_) {
      Touch(*tensor->cache);
      FinishLoading(*tensor);
      if (!tensor->cache->refusal().empty()) {
        Count(GlobalCounters().refused_contexts);
        LogError("%s; KVRAZOR_REQUIRE (--require) forbids that", tensor->cache->refusal().c_str());
        return GGML_STATUS_FAILED;
      }
      if (tensor->packed && !tensor->layer->ready && node->op != GGML_OP_SET_ROWS) {
        tensor->cache->MakePlain(*tensor, "no flash attention node was seen that reads it");
      }
    }
    CollectTensors(node);  // some may be plain now
    if (used_.empty()) return RunInner(i);

    if (node->op == GGML_OP_SET_ROWS && written_ && used_.size() == 1 && StoresRows(node, *written_->packed)) {
      ReadSlots(node, slots_);
      const ggml_tensor* positions = PositionsOf(node);
      const std::vector<int32_t>* known = positions ? FindPositions(positions) : nullptr;
      StoreRows(node, *written_->layer, written_->side, slots_, known ? *known : no_positions_, executor_);
      return GGML_STATUS_SUCCESS;
    }
    if (node->op == GGML_OP_FLASH_ATTN_EXT && used_.size() == 2 && used_[0]->layer == used_[1]->layer &&
        used_[0]->layer->ready) {
      Attend(node, *used_[0]->layer);
      return GGML_STATUS_SUCCESS;
    }
    return RunOnRows(node, used_, written_, executor_, [&] { return RunInner(i); });
  }

  void Attend(const ggml_tensor* node, CacheLayer& layer) {
    const ggml_tensor* q = node->src[0];
    CacheSide& keys = *layer.side(Side::kKey).packed;
    if (q->ne[3] == 1 && static_cast<int64_t>(slots_.size()) == q->ne[1]) {
      const int64_t stream = slots_[0] / keys.shape().slots_per_stream;
      if (sequences_ == 0) CountTurns(node->src[3], keys, stream);
      for (CacheTensor& tensor : layer.sides) tensor.packed->NoteSequences(stream, sequences_, hidden_pages_);
    }
    RunAttention(node, layer, executor_);
    if (q->ne[1] >= kChunkTokens) {
      SealDuePages(layer, executor_);
    } else {
      due_.push_back(&layer);
    }
  }

  /// Once a graph: all layers hold the same tokens.
  void CountTurns(const ggml_tensor* mask, const CacheSide& keys, int64_t stream) {
    sequences_ = CountSequences(mask, slots_, keys.shape().slots_per_stream);
    std::vector<int64_t> pages = keys.full_pages(stream);
    for (int64_t& p : pages) p -= stream * keys.pages_per_stream();
    hidden_pages_ = CountHiddenPages(mask, pages);
  }

  void Touch(KvCache& cache) {
    if (std::find(touched_.begin(), touched_.end(), &cache) == touched_.end()) touched_.push_back(&cache);
  }

  ggml_cgraph* graph_;
  Executor& executor_;
  const std::function<ggml_status(ggml_cgraph*)>& inner_;
  int begin_ = 0;                   // first node that has not been computed
  std::vector<CacheTensor*> used_;  // packed tensors of the current node
  CacheTensor* written_ = nullptr;  // of these, the one it writes
  std::vector<std::pair<const ggml_tensor*, std::vector<int32_t>>> positions_;
  const std::vector<int32_t> no_positions_;
  std::vector<int64_t> slots_;    // of the new tokens
  int sequences_ = 0;             // that the new tokens belong to; 0: not counted yet
  int hidden_pages_ = 0;          // newest pages of other sequences
  std::vector<CacheLayer*> due_;  // layers to seal when the graph is done
  std::vector<KvCache*> touched_;
};

}  // namespace

void InspectNode(const ggml_tensor* node) {
  switch (node->op) {
    case GGML_OP_FLASH_ATTN_EXT: {
      CacheTensor* tensor = PackedTensor(node->src[1]);
      if (!tensor) tensor = PackedTensor(node->src[2]);
      if (tensor) tensor->cache->Learn(node);
      return;
    }
    case GGML_OP_MUL_MAT: {
      for (const ggml_tensor* source : {node->src[0], node->src[1]}) {
        if (CacheTensor* tensor = PackedTensor(source))
          tensor->cache->MakePlain(*tensor,
                                   "its attention is not flash attention (-fa off, or a model with a bias on logits)");
      }
      return;
    }
    case GGML_OP_SET_ROWS: {
      CacheTensor* tensor = PackedTensor(node);
      if (tensor && !StoresRows(node, *tensor->packed)) {
        tensor->cache->MakePlain(*tensor, "values are stored transposed (-fa off)");
      }
      return;
    }
    default: return;
  }
}

ggml_status WalkGraph(ggml_cgraph* graph, Executor& executor, const std::function<ggml_status(ggml_cgraph*)>& inner) {
  return Walk(graph, executor, inner).Run();
}

}  // namespace kvrazor::ggml

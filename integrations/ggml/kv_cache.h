// One KV cache of llama.cpp: the tensors cache_k_l<layer>, cache_v_l<layer> that were allocated together.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "integrations/ggml/cache_side.h"
#include "integrations/ggml/carrier.h"
#include "integrations/ggml/settings.h"
#include "src/core/virtual_memory.h"
#include "src/ops/backend.h"

namespace kvrazor::ggml {

class KvCache;
struct CacheLayer;

/// Rows of a carrier that is being loaded: they may arrive in several pieces and for any slots.
struct CarrierInbox {
  std::vector<std::byte> bytes;
  std::vector<int64_t> slots;
};

/// Where a cache tensor's values are; `extra` of the tensor, root of all its views.
struct CacheTensor {
  KvCache* cache = nullptr;
  CacheLayer* layer = nullptr;
  Side side = Side::kKey;
  ggml_tensor* root = nullptr;
  std::unique_ptr<CacheSide> packed;  ///< null: stored as llama.cpp does, for `reason`
  AddressRange view;                  ///< what root->data points to: no memory while `packed`
  std::string reason;
  CarrierInbox inbox;
};

struct CacheLayer {
  int index = 0;
  Recipe recipe;                         ///< overrides applied
  std::array<CacheTensor, 2> sides;      ///< keys, values
  LayerFormat format;                    ///< valid once `ready`
  bool ready = false;                    ///< the number of heads is known
  std::unique_ptr<SecondMoment> moment;  ///< razor keys only
  MomentParts moment_parts;              ///< arriving with a state that is being loaded
  int64_t decode_steps = 0;              ///< attention calls with few tokens, for sampling queries

  CacheTensor& side(Side s) { return sides[s == Side::kKey ? 0 : 1]; }
  bool packed() const { return sides[0].packed && sides[1].packed; }
};

/// Bytes of one cache, as kvrazor_ggml_stats reports them.
struct CacheBytes {
  int64_t f16_equivalent = 0, packed = 0, staging = 0, staging_peak = 0, exact = 0, table = 0, other = 0;
  int64_t total = 0;          ///< everything that memory was taken for now
  int64_t peak = 0;           ///< highest total so far
  int64_t sealed_values = 0;  ///< values in sealed pages, for bits per value
  int64_t sealed_bytes = 0;   ///< their bytes, outlier tokens included
};

/// Used by one thread at a time, like the llama_context it belongs to; bytes() may be called from any thread.
class KvCache {
 public:
  KvCache(std::shared_ptr<const Settings> settings, const Backend& backend, int64_t buffer_bytes);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  /// Called for each tensor of the allocation, in order; false: not a cache tensor, it lies in plain().
  bool AddTensor(ggml_tensor* tensor);

  /// Takes the number of heads from an attention node (flash attention) that reads this cache; layers that turn out to
  /// be impossible to pack become plain.
  void Learn(const ggml_tensor* attention);
  /// From now on stored as llama.cpp does. Values are kept.
  void MakePlain(CacheTensor& tensor, const std::string& reason);

  void Clear(uint8_t value);
  void Publish();
  CacheBytes bytes() const;
  /// For memory that is taken for a while beside the pages, as a 16-bit view of a tensor.
  MemoryMeter& meter() { return meter_; }

  const Settings& settings() const { return *settings_; }
  const Backend& backend() const { return backend_; }
  std::byte* plain() const { return plain_.data(); }
  std::map<int, CacheLayer>& layers() { return layers_; }
  const std::map<int, CacheLayer>& layers() const { return layers_; }
  void set_buffer(ggml_backend_buffer_t buffer) { buffer_ = buffer; }
  /// Not empty: `require` was asked for and a layer cannot be packed.
  const std::string& refusal() const { return refusal_; }

 private:
  StagingPool& PoolFor(int64_t page_bytes);
  void SetFormat(CacheLayer& layer, const ggml_tensor* attention);
  void Refuse(const std::string& what);
  /// One line for each reason, not one a layer; every layer's reason is in kvrazor_ggml_explain.
  void SayPlain(const CacheTensor& tensor);
  void SayWhenReady() const;
  void SetBufferBytes(const CacheBytes& now);

  MemoryMeter meter_;  ///< outlives pools and sides
  std::shared_ptr<const Settings> settings_;
  const Backend& backend_;
  ggml_backend_buffer_t buffer_ = nullptr;
  AddressRange plain_;  ///< the allocation that ggml places tensors in; only plain ones write to it
  std::vector<ggml_tensor*> others_;
  std::map<int64_t, std::unique_ptr<StagingPool>> pools_;  ///< by page bytes
  std::map<int, CacheLayer> layers_;
  std::string refusal_;
  std::set<std::string> said_;  ///< reasons that were logged
  int64_t planned_bytes_ = 0;   ///< what ggml was told that the cache takes
  WorkspaceBytes workspace_;    ///< of the backend, for the layer that needs most
  int64_t loading_bytes_ = 0;   ///< of a state that is being loaded, as the meter has it
  struct Published {
    std::atomic<int64_t> f16_equivalent{0}, packed{0}, staging{0}, staging_peak{0}, exact{0}, table{0}, other{0},
        total{0}, peak{0}, sealed_values{0}, sealed_bytes{0};
  } published_;
};

/// The packed state behind a tensor or a view of it; nullptr if it is not ours or plain.
CacheTensor* PackedTensor(const ggml_tensor* tensor);

/// Runs fn for every living cache, oldest first, while none is created or destroyed.
void ForEachCache(const std::function<void(const KvCache&)>& fn);

/// Set when a context of this thread must not be created; the next allocation fails with it.
std::string& PendingRefusal();

}  // namespace kvrazor::ggml

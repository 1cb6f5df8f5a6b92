#include "integrations/ggml/generic_node.h"

#include <cstring>

#include "integrations/ggml/counters.h"
#include "integrations/ggml/log.h"

namespace kvrazor::ggml {
namespace {

/// Memory behind a tensor's addresses for as long as the object lives.
class RowsView {
 public:
  RowsView(CacheTensor& tensor, Executor& executor) : tensor_(tensor) {
    tensor.view.SetAccess(AddressRange::Access::kReadWrite);
    tensor.cache->meter().Add(tensor.view.bytes());
    const CacheSide& side = *tensor.packed;
    executor.Run(side.num_pages(), [&](int64_t p, int) {
      if (side.state(p) != PageState::kEmpty) side.ReadRows(p * kPageTokens, (p + 1) * kPageTokens, page(p));
    });
  }
  ~RowsView() {
    tensor_.view.ReleaseAll();
    tensor_.cache->meter().Add(-tensor_.view.bytes());
    tensor_.view.SetAccess(AddressRange::Access::kNone);
  }
  RowsView(const RowsView&) = delete;
  RowsView& operator=(const RowsView&) = delete;

  CacheTensor& tensor() const { return tensor_; }
  f16_bits* page(int64_t p) const {
    return reinterpret_cast<f16_bits*>(tensor_.view.data()) + p * kPageTokens * tensor_.packed->shape().row_values;
  }

 private:
  CacheTensor& tensor_;
};

/// Writes back rows that differ from `before`. Unchanged rows of a page that has to be thawed are the ones that were
/// read from it.
void WriteBack(const RowsView& view, const std::vector<f16_bits>& before, Executor& executor) {
  CacheSide& side = *view.tensor().packed;
  const int64_t width = side.shape().row_values;
  const auto row_bytes = static_cast<size_t>(side.row_bytes());
  for (int64_t p = 0; p < side.num_pages(); ++p) {
    const f16_bits* now = view.page(p);
    const f16_bits* then = before.data() + p * kPageTokens * width;
    bool changed = false;
    for (int t = 0; t < kPageTokens; ++t) {
      if (std::memcmp(now + t * width, then + t * width, row_bytes) == 0) continue;
      const bool is_sink = side.sinks(p).Test(t);
      std::memcpy(side.RowForWrite(p * kPageTokens + t, is_sink), now + t * width, row_bytes);
      changed = true;
    }
    if (changed) SealDuePages(*view.tensor().layer, executor);  // at most a few pages at a time are in 16 bits
  }
}

}  // namespace

void SealDuePages(CacheLayer& layer, Executor& executor) { SealDuePages(std::vector<CacheLayer*>{&layer}, executor); }

void SealDuePages(const std::vector<CacheLayer*>& layers, Executor& executor) {
  std::vector<SealJob> jobs;
  std::vector<int64_t> pages;
  for (CacheLayer* layer : layers) {
    if (!layer->ready) continue;
    for (CacheTensor& tensor : layer->sides) {
      pages.clear();
      tensor.packed->AppendSealable(pages);
      for (const int64_t p : pages) {
        if (tensor.side == Side::kKey)
          tensor.packed->ChooseExactTokens(p);
        else
          tensor.packed->ChooseExactTokensOf(*layer->side(Side::kKey).packed, p);
        jobs.push_back({tensor.packed.get(), p, layer->moment.get()});
      }
    }
  }
  SealPages(jobs, executor);
}

ggml_status RunOnRows(const ggml_tensor* node, const std::vector<CacheTensor*>& used, CacheTensor* written,
                      Executor& executor, const std::function<ggml_status()>& run) {
  Count(GlobalCounters().generic_nodes);
  LogDebug("%s '%s' reads or writes a packed cache: computed on a 16-bit copy", ggml_op_name(node->op), node->name);
  std::vector<std::unique_ptr<RowsView>> views;
  for (CacheTensor* tensor : used) views.push_back(std::make_unique<RowsView>(*tensor, executor));
  std::vector<f16_bits> before;
  if (written) {
    const auto* rows = reinterpret_cast<const f16_bits*>(written->view.data());
    before.assign(rows, rows + ggml_nelements(written->root));
  }
  const ggml_status status = run();
  if (written && status == GGML_STATUS_SUCCESS) {
    for (const auto& view : views) {
      if (&view->tensor() == written) WriteBack(*view, before, executor);
    }
  }
  return status;
}

}  // namespace kvrazor::ggml

// 16-bit pages: pages being filled, residual windows and the transient pages of a prefill chunk, shared by all layers
// of a cache.
#pragma once

#include <cstdint>
#include <vector>

#include "integrations/ggml/virtual_memory.h"
#include "src/core/half.h"

namespace kvrazor::ggml {

/// Pages of one size. Memory follows the most pages ever in use at once, until Trim.
/// Not thread safe: one cache is used by one thread at a time, as llama.cpp does.
class StagingPool {
 public:
  explicit StagingPool(int64_t page_bytes) : page_bytes_(page_bytes) {}

  /// A page of zeros (a key that was never written must not be NaN: it is hidden by the mask, not skipped).
  f16_bits* Take();
  void Give(f16_bits* page);
  /// Gives memory back to the system if no page is in use.
  void Trim();

  int64_t page_bytes() const { return page_bytes_; }
  int64_t used_bytes() const { return used_pages_ * page_bytes_; }
  /// Of the pages that hold memory now, used or free.
  int64_t held_bytes() const { return (used_pages_ + static_cast<int64_t>(free_.size())) * page_bytes_; }
  /// Most bytes ever held.
  int64_t peak_bytes() const { return peak_pages_ * page_bytes_; }

 private:
  static constexpr int64_t kSlabPages = 32;

  int64_t page_bytes_;
  std::vector<AddressRange> slabs_;
  int64_t slab_next_ = kSlabPages;  // first page of the last slab that was never handed out
  std::vector<f16_bits*> free_;     // last in, first out: memory follows the peak
  int64_t used_pages_ = 0;
  int64_t peak_pages_ = 0;
};

}  // namespace kvrazor::ggml

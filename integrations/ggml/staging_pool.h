// 16-bit pages: pages being filled, residual windows and the transient pages of a prefill chunk, shared by all layers
// of a cache.
#pragma once

#include <cstdint>
#include <vector>

#include "src/core/half.h"
#include "src/core/virtual_memory.h"

namespace kvrazor::ggml {

/// Pages of one size. A page takes memory as far as it was written to, and none any more once it is given back: what one
/// layer of a prefill chunk gives back, the next one has.
/// Not thread safe: one cache is used by one thread at a time, as llama.cpp does.
class StagingPool {
 public:
  StagingPool(int64_t page_bytes, MemoryMeter& meter);
  ~StagingPool() { meter_.Add(-table_bytes_); }
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  /// The number of a page of zeros (a key that was never written must not be NaN: it is hidden by the mask, not skipped).
  int32_t Take();
  void Give(int32_t page);
  f16_bits* rows(int32_t page) const;
  /// To be called before [offset, offset + bytes) of a page is written to.
  void Touch(int32_t page, int64_t offset, int64_t bytes);

  int64_t page_bytes() const { return page_bytes_; }
  int64_t used_pages() const { return used_pages_; }
  /// Memory behind the pages, in whole system pages, and the most there ever was.
  int64_t committed_bytes() const { return committed_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }
  int64_t table_bytes() const { return table_bytes_; }
  MemoryMeter& meter() const { return meter_; }

 private:
  static constexpr int32_t kSlabPages = 32;

  CommittedRange& slab_of(int32_t page) { return slabs_[static_cast<size_t>(page / kSlabPages)]; }
  int64_t offset_of(int32_t page) const { return page % kSlabPages * stride_; }
  void CountTables();

  int64_t page_bytes_;
  int64_t stride_;  // page_bytes_ in whole system pages, so that all of a page's memory can be given back
  MemoryMeter& meter_;
  std::vector<CommittedRange> slabs_;
  int32_t num_fresh_ = 0;      // pages from here on were never handed out
  std::vector<int32_t> free_;  // last in, first out
  int64_t used_pages_ = 0;
  int64_t committed_bytes_ = 0;
  int64_t peak_bytes_ = 0;
  int64_t table_bytes_ = 0;
};

}  // namespace kvrazor::ggml

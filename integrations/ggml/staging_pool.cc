#include "integrations/ggml/staging_pool.h"

#include <algorithm>

namespace kvrazor::ggml {

StagingPool::StagingPool(int64_t page_bytes, MemoryMeter& meter)
    : page_bytes_(page_bytes),
      stride_((page_bytes + AddressRange::SystemPageBytes() - 1) / AddressRange::SystemPageBytes() *
              AddressRange::SystemPageBytes()),
      meter_(meter) {}

int32_t StagingPool::Take() {
  int32_t page = num_fresh_;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    if (page == static_cast<int32_t>(slabs_.size()) * kSlabPages) {
      slabs_.emplace_back(kSlabPages * stride_, meter_);
      free_.reserve(slabs_.size() * kSlabPages);  // Give does not allocate
      CountTables();
    }
    ++num_fresh_;
  }
  ++used_pages_;
  return page;
}

void StagingPool::Give(int32_t page) {
  CommittedRange& slab = slab_of(page);
  committed_bytes_ -= slab.committed_bytes();
  slab.Release(offset_of(page), stride_);
  committed_bytes_ += slab.committed_bytes();
  free_.push_back(page);
  --used_pages_;
}

f16_bits* StagingPool::rows(int32_t page) const {
  return reinterpret_cast<f16_bits*>(slabs_[static_cast<size_t>(page / kSlabPages)].data() + offset_of(page));
}

void StagingPool::Touch(int32_t page, int64_t offset, int64_t bytes) {
  CommittedRange& slab = slab_of(page);
  committed_bytes_ -= slab.committed_bytes();
  slab.Touch(offset_of(page) + offset, bytes);
  committed_bytes_ += slab.committed_bytes();
  peak_bytes_ = std::max(peak_bytes_, committed_bytes_);
}

void StagingPool::CountTables() {
  auto bytes = static_cast<int64_t>(slabs_.capacity() * sizeof(CommittedRange) + free_.capacity() * sizeof(int32_t));
  for (const CommittedRange& slab : slabs_) bytes += slab.table_bytes();
  meter_.Add(bytes - table_bytes_);
  table_bytes_ = bytes;
}

}  // namespace kvrazor::ggml

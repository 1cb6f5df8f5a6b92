#include "integrations/ggml/staging_pool.h"

#include <algorithm>
#include <cstring>

namespace kvrazor::ggml {

f16_bits* StagingPool::Take() {
  f16_bits* page = nullptr;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
    std::memset(page, 0, static_cast<size_t>(page_bytes_));
  } else {
    if (slab_next_ == kSlabPages) {
      slabs_.push_back(AddressRange::Reserve(kSlabPages * page_bytes_, AddressRange::Access::kReadWrite));
      slab_next_ = 0;
    }
    page = reinterpret_cast<f16_bits*>(slabs_.back().data() + slab_next_++ * page_bytes_);  // fresh memory is 0
  }
  ++used_pages_;
  peak_pages_ = std::max(peak_pages_, used_pages_);
  return page;
}

void StagingPool::Give(f16_bits* page) {
  free_.push_back(page);
  --used_pages_;
}

void StagingPool::Trim() {
  if (used_pages_ != 0) return;
  free_.clear();
  slabs_.clear();
  slab_next_ = kSlabPages;
}

}  // namespace kvrazor::ggml

#include "src/backends/cpu/scratch.h"

#include <cassert>

#include "hwy/aligned_allocator.h"

namespace kvrazor::cpu {
namespace {

constexpr size_t kAlign = 64;

struct Block {
  hwy::AlignedFreeUniquePtr<std::byte[]> bytes;
  size_t size = 0;
};
thread_local Block block;

}  // namespace

Scratch::Scratch(size_t num_values) {
  // Every part may waste one alignment step; no op takes more than 32 parts.
  const size_t size = num_values * 4 + 32 * kAlign;
  if (block.size < size) {
    block.bytes = hwy::AllocateAligned<std::byte>(size);
    block.size = size;
  }
  next_ = block.bytes.get();
  end_ = next_ + block.size;
}

void* Scratch::TakeBytes(size_t bytes) {
  std::byte* part = next_;
  next_ += (bytes + kAlign - 1) / kAlign * kAlign;
  assert(next_ <= end_);
  return part;
}

}  // namespace kvrazor::cpu

#include "src/backends/cpu/scratch.h"

#include <cassert>

#include "hwy/aligned_allocator.h"
#include "kvrazor/recipe.h"

namespace kvrazor::cpu {
namespace {

constexpr int64_t kAlign = 64;

struct Block {
  hwy::AlignedFreeUniquePtr<std::byte[]> bytes;
  size_t size = 0;
};
thread_local Block block;

}  // namespace

int64_t ScratchBytes(int64_t head_dim) {
  // Every part may waste one alignment step; no step takes more than 32 parts.
  return 4 * (2 * kPageTokens * head_dim + 2 * head_dim * head_dim + 40 * head_dim + 4 * kPageTokens) + 32 * kAlign;
}

Scratch::Scratch(size_t head_dim) {
  const size_t size = static_cast<size_t>(ScratchBytes(static_cast<int64_t>(head_dim)));
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

// Recognizes the allocation of a KV cache: ggml asks for the size of every tensor, then for one buffer of their sum.
#pragma once

#include <string>

#include "ggml-backend.h"
#include "integrations/ggml/settings.h"
#include "kvrazor/layout.h"

namespace kvrazor::ggml {

/// What becomes of a tensor.
struct Placement {
  enum class Kind { kNotACache, kPacked, kPlain };
  Kind kind = Kind::kNotACache;
  Side side = Side::kKey;
  int layer = 0;
  int64_t bytes = 0;   ///< kPacked: to allocate
  std::string reason;  ///< kPlain: why
};

/// keys_plain: the keys of the same layer are kPlain.
Placement Place(const ggml_tensor* tensor, const Settings& settings, bool keys_plain);

/// Replacement of buft->iface.get_alloc_size; inner_bytes is what the original function says.
size_t NoteAllocSize(const ggml_tensor* tensor, size_t inner_bytes, size_t alignment);

/// Whether the buffer of `bytes` that is asked for now holds a KV cache, and whether it must be refused.
struct AllocationVerdict {
  bool is_cache = false;
  std::string refusal;
  int num_recurrent = 0;       ///< layers with a recurrent state in place of a KV cache
  bool recipe_is_bad = false;  ///< a KV cache that is not packed because the recipe could not be read
};
AllocationVerdict JudgeAllocation(size_t bytes);

}  // namespace kvrazor::ggml

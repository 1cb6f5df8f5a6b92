// The ggml buffer that holds a KvCache: what llama.cpp allocates, clears, copies, saves and restores.
#pragma once

#include "ggml-backend-impl.h"
#include "integrations/ggml/kv_cache.h"

namespace kvrazor::ggml {

bool IsCacheBuffer(ggml_backend_buffer_t buffer);
KvCache& CacheOf(ggml_backend_buffer_t buffer);

/// nullptr if the system has no address space left. `type` must not be a host type: values are read through the buffer.
ggml_backend_buffer_t NewCacheBuffer(ggml_backend_buffer_type_t type, const Backend& backend, size_t bytes);

}  // namespace kvrazor::ggml

#include "integrations/ggml/kv_buffer.h"

#include <cstring>
#include <exception>
#include <new>

#include "integrations/ggml/counters.h"
#include "integrations/ggml/log.h"
#include "integrations/ggml/tensor_access.h"

namespace kvrazor::ggml {
namespace {

/// ggml calls these functions from C and from destructors: nothing may be thrown out of them.
template <typename Fn>
void Guard(const char* what, const Fn& fn) {
  try {
    fn();
  } catch (const std::exception& error) {
    Count(GlobalCounters().state_errors);
    LogError("%s a KV cache: %s", what, error.what());
  }
}

void FreeBuffer(ggml_backend_buffer_t buffer) { delete static_cast<KvCache*>(buffer->context); }

void* GetBase(ggml_backend_buffer_t buffer) { return CacheOf(buffer).plain(); }

ggml_status InitTensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  if (tensor->view_src) return GGML_STATUS_SUCCESS;
  try {
    CacheOf(buffer).AddTensor(tensor);
    CacheOf(buffer).Publish();
    return GGML_STATUS_SUCCESS;
  } catch (const std::bad_alloc&) {
    LogError("no address space for %s", tensor->name);
    return GGML_STATUS_ALLOC_FAILED;
  }
}

/// Byte of the packed tensor that `offset` in a view of it means.
int64_t RootOffset(const ggml_tensor* tensor, size_t offset) {
  return static_cast<int64_t>(tensor->view_offs + offset);
}

void Get(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
  CacheTensor* packed = PackedTensor(tensor);
  if (!packed) {
    std::memcpy(data, static_cast<const char*>(tensor->data) + offset, size);
    return;
  }
  Guard("reading", [&] {
    GetBytes(*packed, static_cast<std::byte*>(data), RootOffset(tensor, offset), static_cast<int64_t>(size));
  });
}

void Set(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  if (CacheTensor* packed = PackedTensor(tensor)) {
    Guard("writing", [&] {
      SetBytes(*packed, static_cast<const std::byte*>(data), RootOffset(tensor, offset), static_cast<int64_t>(size));
      CacheOf(buffer).Publish();
    });
    return;
  }
  std::memcpy(static_cast<char*>(tensor->data) + offset, data, size);
  const ggml_tensor* root = tensor->view_src ? tensor->view_src : tensor;
  const size_t row_bytes = root->nb[1];
  if (root->extra && root->type == GGML_TYPE_F16 && (tensor->view_offs + offset) % row_bytes == 0) {
    ZeroCarriers(*static_cast<CacheTensor*>(root->extra), static_cast<std::byte*>(tensor->data) + offset,
                 static_cast<int64_t>(size / row_bytes), static_cast<int64_t>(row_bytes));
  }
}

void Fill(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset, size_t size) {
  CacheTensor* packed = PackedTensor(tensor);
  if (!packed) {
    std::memset(static_cast<char*>(tensor->data) + offset, value, size);
    return;
  }
  Guard("filling", [&] {
    FillBytes(*packed, value, RootOffset(tensor, offset), static_cast<int64_t>(size));
    CacheOf(buffer).Publish();
  });
}

/// false: ggml copies through Get and Set.
bool Copy(ggml_backend_buffer_t buffer, const ggml_tensor* source, ggml_tensor* target) {
  CacheTensor* from = PackedTensor(source);
  CacheTensor* to = PackedTensor(target);
  if (!from || !to) return false;
  Guard("copying", [&] {
    CopyBytes(*from, RootOffset(source, 0), *to, RootOffset(target, 0), static_cast<int64_t>(ggml_nbytes(source)));
    CacheOf(buffer).Publish();
  });
  return true;
}

void Clear(ggml_backend_buffer_t buffer, uint8_t value) { CacheOf(buffer).Clear(value); }

constexpr ggml_backend_buffer_i kInterface = {
    .free_buffer = FreeBuffer,
    .get_base = GetBase,
    .init_tensor = InitTensor,
    .memset_tensor = Fill,
    .set_tensor = Set,
    .get_tensor = Get,
    .set_tensor_2d = nullptr,
    .get_tensor_2d = nullptr,
    .cpy_tensor = Copy,
    .clear = Clear,
    .reset = nullptr,
};

}  // namespace

bool IsCacheBuffer(ggml_backend_buffer_t buffer) { return buffer && buffer->iface.free_buffer == FreeBuffer; }

KvCache& CacheOf(ggml_backend_buffer_t buffer) { return *static_cast<KvCache*>(buffer->context); }

ggml_backend_buffer_t NewCacheBuffer(ggml_backend_buffer_type_t type, const Backend& backend, size_t bytes) {
  try {
    auto cache = std::make_unique<KvCache>(CurrentSettings(), backend, static_cast<int64_t>(bytes));
    KvCache* context = cache.release();
    ggml_backend_buffer_t buffer = ggml_backend_buffer_init(type, kInterface, context, bytes);
    context->set_buffer(buffer);
    return buffer;
  } catch (const std::bad_alloc&) {
    LogError("no address space for a KV cache of %zu bytes", bytes);
    return nullptr;
  }
}

}  // namespace kvrazor::ggml

#include "eval/key_capture.h"

#include <optional>

#include "eval/kv_nodes.h"
#include "ggml.h"

namespace kvrazor::eval {

bool KeyCapture::OnNode(ggml_tensor* node, bool ask, void* capture) {
  KeyCapture& self = *static_cast<KeyCapture*>(capture);
  const std::optional<CacheTensorName> written = WrittenCache(node);
  const bool is_main = written && written->kind.empty();
  if (ask) return is_main;
  if (is_main) self.Collect(node->src[0], (written->side == Side::kKey ? self.keys_ : self.values_)[written->layer]);
  return true;
}

void KeyCapture::Collect(const ggml_tensor* rows, StoredRows& stored) {
  // rows: [heads * head_dim][tokens], a view of [head_dim][heads][tokens]
  if (rows->type != GGML_TYPE_F32) return;
  stored.head_dim = rows->src[0] ? rows->src[0]->ne[0] : rows->ne[0];
  stored.num_heads = rows->ne[0] / stored.head_dim;
  const size_t row_bytes = static_cast<size_t>(rows->ne[0]) * sizeof(float), begin = stored.values.size();
  stored.values.resize(begin + static_cast<size_t>(rows->ne[0] * rows->ne[1]));
  for (int64_t t = 0; t < rows->ne[1]; ++t)
    ggml_backend_tensor_get(rows, stored.values.data() + begin + static_cast<size_t>(t * rows->ne[0]),
                            static_cast<size_t>(t) * rows->nb[1], row_bytes);
}

}  // namespace kvrazor::eval

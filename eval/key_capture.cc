#include "eval/key_capture.h"

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "ggml.h"

namespace kvrazor::eval {
namespace {

// The layer behind "cache_k_l" or "cache_v_l" in the name of the tensor that a node writes to; -1 for any other node.
int LayerOf(const ggml_tensor* node, std::string_view prefix) {
  if (node->op != GGML_OP_SET_ROWS || !node->view_src) return -1;
  const std::string_view name = node->view_src->name;
  return name.starts_with(prefix) ? std::atoi(name.data() + prefix.size()) : -1;
}

}  // namespace

bool KeyCapture::OnNode(ggml_tensor* node, bool ask, void* capture) {
  KeyCapture& self = *static_cast<KeyCapture*>(capture);
  const int key_layer = LayerOf(node, "cache_k_l"), value_layer = LayerOf(node, "cache_v_l");
  if (ask) return key_layer >= 0 || value_layer >= 0;
  if (key_layer >= 0) self.Collect(node->src[0], self.keys_[key_layer]);
  if (value_layer >= 0) self.Collect(node->src[0], self.values_[value_layer]);
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

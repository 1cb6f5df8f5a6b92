#include "eval/kv_nodes.h"

#include <charconv>
#include <string_view>

namespace kvrazor::eval {
namespace {

bool IsView(const ggml_tensor* t) {
  return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_CONT;
}

}  // namespace

ggml_tensor* RootOf(ggml_tensor* tensor) { return tensor->view_src ? tensor->view_src : tensor; }

std::optional<CacheTensorName> CacheBehind(const ggml_tensor* tensor) {
  if (!tensor) return std::nullopt;
  std::string_view text = (tensor->view_src ? tensor->view_src : tensor)->name;
  if (!text.starts_with("cache_")) return std::nullopt;
  text.remove_prefix(6);
  const size_t at = text.rfind("_l");
  if (at == std::string_view::npos || at == 0) return std::nullopt;
  CacheTensorName name;
  const std::string_view digits = text.substr(at + 2);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), name.layer);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  const char which = text[at - 1];
  if (which != 'k' && which != 'v') return std::nullopt;  // cache_r_l0, cache_s_l0: recurrent state
  name.side = which == 'k' ? Side::kKey : Side::kValue;
  name.kind = text.substr(0, at - 1);
  return name;
}

std::optional<CacheTensorName> WrittenCache(const ggml_tensor* node) {
  return node->op == GGML_OP_SET_ROWS && node->view_src ? CacheBehind(node) : std::nullopt;
}

ggml_tensor* KeysReadBy(const ggml_tensor* node) {
  ggml_tensor* keys = node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[1]
                      : node->op == GGML_OP_MUL_MAT      ? node->src[0]
                                                         : nullptr;
  const std::optional<CacheTensorName> cache = CacheBehind(keys);
  return cache && cache->side == Side::kKey ? keys : nullptr;
}

const ggml_tensor* QueriesOf(const ggml_tensor* attention) {
  return attention->src[attention->op == GGML_OP_FLASH_ATTN_EXT ? 0 : 1];
}

std::vector<int64_t> SlotsOf(const ggml_tensor* set_rows) {
  const ggml_tensor* index = set_rows->src[1];
  std::vector<int64_t> slots(static_cast<size_t>(index->ne[0]));
  if (index->type == GGML_TYPE_I64) {
    ggml_backend_tensor_get(index, slots.data(), 0, slots.size() * sizeof(int64_t));
  } else {
    const std::vector<int32_t> narrow = ReadIntegers(index);
    slots.assign(narrow.begin(), narrow.end());
  }
  return slots;
}

const ggml_tensor* RopeBehind(const ggml_tensor* set_rows) {
  const ggml_tensor* t = set_rows->src[0];
  while (t && IsView(t)) t = t->src[0];
  return t && t->op == GGML_OP_ROPE ? t : nullptr;
}

std::vector<int32_t> ReadIntegers(const ggml_tensor* tensor) {
  std::vector<int32_t> values(static_cast<size_t>(tensor->ne[0]));
  ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(int32_t));
  return values;
}

}  // namespace kvrazor::eval

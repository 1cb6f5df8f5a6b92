#include "eval/model_shape.h"

#include <fmt/format.h>

#include <limits>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

// Far above any real model; keeps products of a damaged file's numbers inside 64 bits.
constexpr int64_t kMaxLayers = 1 << 14, kMaxHeads = 1 << 14, kMaxHeadDim = 1 << 16, kMaxContext = int64_t{1} << 40;

class Keys {
 public:
  explicit Keys(const GgufHeader& header, std::string architecture)
      : header_(header), architecture_(std::move(architecture)) {}

  std::string Name(const char* key) const { return architecture_ + "." + key; }

  int64_t Int(const char* key, int64_t otherwise, int64_t max) const {
    return Checked(key, header_.Int(Name(key)).value_or(otherwise), max);
  }

  int64_t Required(const char* key, int64_t max) const {
    const auto value = header_.Int(Name(key));
    if (!value)
      throw Error(fmt::format("the model '{}' does not say '{}', which is needed. Is it a language model?",
                              header_.path, Name(key)));
    return Checked(key, *value, max);
  }

  /// A value a layer: the key holds one for all or an array with one each.
  int64_t PerLayer(const char* key, int64_t layer, int64_t otherwise, int64_t max) const {
    const GgufArray* array = header_.Array(Name(key));
    if (!array) return Int(key, otherwise, max);
    if (layer >= std::ssize(array->values))
      throw Error(fmt::format("the model '{}' has {} values in '{}', fewer than its layers. The file is damaged.",
                              header_.path, array->values.size(), Name(key)));
    return Checked(key, array->values[static_cast<size_t>(layer)], max);
  }

  bool Has(const char* key) const { return header_.values.count(Name(key)) != 0; }
  const GgufArray* Array(const char* key) const { return header_.Array(Name(key)); }

 private:
  int64_t Checked(const char* key, int64_t value, int64_t max) const {
    if (value < 0 || value > max)
      throw Error(fmt::format("the model '{}' says '{}' = {}; 0 to {} is possible. The file is damaged.", header_.path,
                              Name(key), value, max));
    return value;
  }

  const GgufHeader& header_;
  std::string architecture_;
};

// Sliding windows: the key sliding_window_pattern is a flag a layer, or n: every n-th layer keeps everything.
bool IsWindowed(const Keys& keys, int64_t layer) {
  if (const GgufArray* pattern = keys.Array("attention.sliding_window_pattern"))
    return layer < std::ssize(pattern->values) && pattern->values[static_cast<size_t>(layer)] != 0;
  const int64_t period = keys.Int("attention.sliding_window_pattern", 0, kMaxLayers);
  return period > 0 && layer % period != period - 1;
}

}  // namespace

int64_t ModelShape::f16_bytes_per_token() const {
  int64_t bytes = 0;
  for (const LayerShape& layer : layers) {
    if (layer.kind == LayerKind::kFull || layer.kind == LayerKind::kLatent)
      bytes += int64_t{2} * layer.num_kv_heads * (layer.k_head_dim + layer.v_head_dim);
  }
  return bytes;
}

ModelShape ShapeOf(const GgufHeader& header) {
  ModelShape shape;
  const auto architecture = header.Text("general.architecture");
  if (!architecture || architecture->empty())
    throw Error(
        fmt::format("the model '{}' does not say its 'general.architecture'. Is it a language model?", header.path));
  shape.architecture = *architecture;
  shape.name = header.Text("general.name").value_or(header.path.substr(header.path.find_last_of('/') + 1));
  const Keys keys(header, shape.architecture);
  const int64_t num_layers = keys.Required("block_count", kMaxLayers);
  shape.embedding_length = keys.Required("embedding_length", int64_t{1} << 24);
  shape.trained_context = keys.Required("context_length", kMaxContext);
  if (shape.embedding_length == 0 || num_layers == 0)
    throw Error(fmt::format("the model '{}' claims {} layers of width {}. The file is damaged.", header.path,
                            num_layers, shape.embedding_length));
  if (const GgufArray* tokens = header.Array("tokenizer.ggml.tokens")) shape.vocabulary = tokens->length;
  if (shape.vocabulary == 0) shape.vocabulary = keys.Int("vocab_size", 0, int64_t{1} << 32);
  shape.weight_bytes = header.tensor_bytes();

  const int64_t window = keys.Int("attention.sliding_window", 0, kMaxContext);
  const int64_t latent = keys.Int("attention.kv_lora_rank", 0, kMaxHeadDim);
  const bool has_pattern = keys.Has("attention.sliding_window_pattern");
  if (window > 0 && !has_pattern)
    shape.notes.push_back(
        fmt::format("The model has a sliding window of {} tokens but does not say in which layers: all are counted "
                    "with the full context.",
                    window));
  for (int64_t i = 0; i < num_layers; ++i) {
    LayerShape layer;
    const int64_t num_heads = keys.PerLayer("attention.head_count", i, 0, kMaxHeads);
    layer.num_kv_heads = static_cast<int>(keys.PerLayer("attention.head_count_kv", i, num_heads, kMaxHeads));
    if (num_heads == 0 || layer.num_kv_heads == 0) {
      layer.kind = LayerKind::kRecurrent;
      layer.num_kv_heads = 0;
    } else if (latent > 0) {
      layer = {.kind = LayerKind::kLatent,
               .num_kv_heads = 1,
               .k_head_dim = static_cast<int>(latent + keys.Int("rope.dimension_count", 0, kMaxHeadDim))};
    } else {
      const int64_t default_dim = shape.embedding_length / num_heads;
      layer.k_head_dim = static_cast<int>(keys.Int("attention.key_length", default_dim, kMaxHeadDim));
      layer.v_head_dim = static_cast<int>(keys.Int("attention.value_length", default_dim, kMaxHeadDim));
      if (layer.k_head_dim == 0 || layer.v_head_dim == 0)
        throw Error(
            fmt::format("the model '{}' claims heads of 0 values in layer {}. The file is damaged.", header.path, i));
      if (window > 0 && has_pattern && IsWindowed(keys, i)) {
        layer.kind = LayerKind::kWindow;
        layer.window = window;
      }
    }
    shape.layers.push_back(layer);
  }
  return shape;
}

ModelShape ReadModelShape(const std::string& path) {
  const GgufHeader header = ReadGgufHeader(path);
  ModelShape shape = ShapeOf(header);
  for (const std::string& part : GgufParts(header)) {
    if (part != path) shape.weight_bytes += ReadGgufHeader(part).tensor_bytes();
  }
  return shape;
}

}  // namespace kvrazor::eval

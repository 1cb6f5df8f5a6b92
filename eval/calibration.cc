#include "eval/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "eval/gguf_header.h"
#include "eval/kv_nodes.h"
#include "eval/rotate_kv.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

/// FNV-1a.
class Hash {
 public:
  void Add(const char* data, size_t size) {
    for (size_t i = 0; i < size; ++i) state_ = (state_ ^ static_cast<unsigned char>(data[i])) * 0x100000001b3u;
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

void AddFile(const std::string& path, Hash& hash) {
  constexpr int64_t kEnd = int64_t{1} << 20, kPiece = 4096, kPieces = 64;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t bytes = file ? static_cast<int64_t>(file.tellg()) : -1;
  if (bytes < 0) throw Error(fmt::format("cannot open the model '{}'.", path));
  hash.Add(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
  std::vector<char> buffer;
  const auto add = [&](int64_t at, int64_t size) {
    at = std::clamp<int64_t>(at, 0, bytes);
    buffer.resize(static_cast<size_t>(std::min(size, bytes - at)));
    file.seekg(at);
    if (!file.read(buffer.data(), std::ssize(buffer))) throw Error(fmt::format("cannot read the model '{}'.", path));
    hash.Add(buffer.data(), buffer.size());
  };
  add(0, kEnd);
  for (int64_t i = 1; i < kPieces; ++i) add(bytes / kPieces * i, kPiece);
  add(bytes - kEnd, kEnd);
}

}  // namespace

std::string ModelFingerprint(const std::string& path) {
  Hash hash;
  for (const std::string& part : GgufParts(ReadGgufHeader(path))) AddFile(part, hash);
  return fmt::format("{:016x}", hash.value());
}

Calibration ReadCalibration(const std::string& path, const std::string& fingerprint) {
  std::ifstream file(path, std::ios::binary);
  const std::string remedy = " Make one with: kvrazor calibrate MODEL TEXT -o FILE";
  if (!file) throw Error(fmt::format("cannot open the calibration file '{}'.{}", path, remedy));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    Calibration c = ParseCalibration(text);
    if (c.fingerprint != fingerprint)
      throw Error(fmt::format("it was made for another model ('{}', fingerprint {}; this one's is {}).", c.model,
                              c.fingerprint, fingerprint));
    return c;
  } catch (const Error& e) {
    throw Error(fmt::format("the calibration file '{}' cannot be used: {}{}", path, e.what(), remedy));
  }
}

bool KeyChannelSums::OnNode(ggml_tensor* node, bool ask, void* sums) {
  KeyChannelSums& self = *static_cast<KeyChannelSums*>(sums);
  if (self.failure_) return false;
  if (ask) {
    const std::optional<CacheTensorName> written = WrittenCache(node);
    return (written && written->side == Side::kKey) || KeysReadBy(node);
  }
  try {
    self.See(node);
    return true;
  } catch (...) {
    self.failure_ = std::current_exception();
    return false;
  }
}

void KeyChannelSums::See(ggml_tensor* node) {
  if (const std::optional<CacheTensorName> written = WrittenCache(node)) {
    Layer& layer = layers_[written->layer];
    const ggml_tensor* rows = node->src[0];  // [row_values, tokens], a view
    if (rows->type != GGML_TYPE_F32)
      throw Error(fmt::format("layer {}: its keys are {}, not f32.", written->layer, ggml_type_name(rows->type)));
    try {
      if (!layer.rope) layer.rope = RopeOfKeys(node);
    } catch (const Error& e) {
      throw Error(fmt::format("layer {}: {}", written->layer, e.what()));
    }
    layer.rows.resize(static_cast<size_t>(rows->ne[0] * rows->ne[1]));
    for (int64_t t = 0; t < rows->ne[1]; ++t)
      ggml_backend_tensor_get(rows, layer.rows.data() + t * rows->ne[0], static_cast<size_t>(t) * rows->nb[1],
                              static_cast<size_t>(rows->ne[0]) * sizeof(float));
    layer.positions = layer.rope->is_none() ? std::vector<int32_t>() : ReadIntegers(RopeBehind(node)->src[1]);
  }
  if (const ggml_tensor* keys = KeysReadBy(node)) {
    Layer& layer = layers_[CacheBehind(keys)->layer];
    layer.shape = {static_cast<int>(keys->ne[2]), static_cast<int>(keys->ne[0])};
    Sum(layer);
  }
}

void KeyChannelSums::Sum(Layer& layer) {
  if (layer.rows.empty()) return;  // a layer that reads another one's keys
  CheckRotateKvShape(layer.shape);
  const auto width = static_cast<size_t>(layer.shape.num_kv_heads) * static_cast<size_t>(layer.shape.head_dim);
  const auto tokens = static_cast<int64_t>(layer.rows.size() / width);
  layer.rope->Undo(layer.rows.data(), tokens, layer.shape.num_kv_heads, layer.positions);
  RotateHeadRuns(layer.rows.data(), tokens, layer.shape);
  layer.sums.resize(width);
  for (size_t i = 0; i < layer.rows.size(); ++i) layer.sums[i % width] += layer.rows[i];
  layer.tokens += tokens;
  layer.rows.clear();
}

void KeyChannelSums::EndBatch() {
  if (failure_) std::rethrow_exception(failure_);
  if (layers_.empty()) throw Error("the model keeps no keys (a recurrent model): there is nothing to calibrate.");
}

Calibration KeyChannelSums::Result() const {
  Calibration c;
  for (const auto& [index, layer] : layers_) {
    c.tokens = std::max(c.tokens, layer.tokens);
    c.layers[index] = {layer.shape, ChannelOrder(layer.sums)};
  }
  return c;
}

}  // namespace kvrazor::eval

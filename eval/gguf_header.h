// The header of a GGUF file, read with every count, size and offset checked against the file before it is believed. llama.cpp
// asserts on some damaged files; what passes here is safe to hand to it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace kvrazor::eval {

struct GgufTensor {
  std::string name;
  int type = 0;                    ///< ggml_type
  std::array<int64_t, 4> ne = {};  ///< values along each dimension, 1 beyond the last
  uint64_t offset = 0;             ///< from the start of the data
  uint64_t bytes = 0;
};

/// An array is kept only if it holds at most kMaxKeptElements integers; of all others just the length is known.
struct GgufArray {
  int64_t length = 0;
  std::vector<int64_t> values;  ///< empty if not kept
};

using GgufValue = std::variant<int64_t, double, bool, std::string, GgufArray>;

struct GgufHeader {
  std::string path;
  uint32_t version = 0;
  int64_t file_bytes = 0;
  uint64_t data_offset = 0;
  std::map<std::string, GgufValue> values;
  std::vector<GgufTensor> tensors;

  static constexpr int64_t kMaxKeptElements = 1 << 16;

  /// nullopt if the key is absent or of another kind.
  std::optional<int64_t> Int(const std::string& key) const;
  std::optional<std::string> Text(const std::string& key) const;
  const GgufArray* Array(const std::string& key) const;
  uint64_t tensor_bytes() const;
};

/// Reads and checks one file. Throws Error that names the file, the place and what to do. Memory stays below a small multiple
/// of the header's own size; nothing is allocated from a count that the file's size does not bear out.
GgufHeader ReadGgufHeader(const std::string& path);

/// Paths of all parts of a split model ("...-00001-of-00003.gguf"), or just `path`. Throws Error if the name does not fit.
std::vector<std::string> GgufParts(const GgufHeader& header);

}  // namespace kvrazor::eval

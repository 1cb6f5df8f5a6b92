// Writes small GGUF files, whole ones and broken ones.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <unistd.h>

#include "ggml.h"
#include "gguf.h"

namespace kvrazor::eval {

class GgufBuilder {
 public:
  GgufBuilder& Int(const std::string& key, uint32_t value) { return Scalar(key, GGUF_TYPE_UINT32, value); }
  GgufBuilder& Float(const std::string& key, float value) { return Scalar(key, GGUF_TYPE_FLOAT32, value); }
  GgufBuilder& Text(const std::string& key, const std::string& value) {
    Key(key, GGUF_TYPE_STRING);
    PutString(values_, value);
    return *this;
  }
  GgufBuilder& Ints(const std::string& key, const std::vector<int32_t>& value) {
    Key(key, GGUF_TYPE_ARRAY);
    Put(values_, int32_t{GGUF_TYPE_INT32});
    Put(values_, uint64_t{value.size()});
    for (const int32_t v : value) Put(values_, v);
    return *this;
  }
  GgufBuilder& Texts(const std::string& key, const std::vector<std::string>& value) {
    Key(key, GGUF_TYPE_ARRAY);
    Put(values_, int32_t{GGUF_TYPE_STRING});
    Put(values_, uint64_t{value.size()});
    for (const std::string& v : value) PutString(values_, v);
    return *this;
  }
  GgufBuilder& Tensor(const std::string& name, int32_t type, const std::vector<int64_t>& ne) {
    PutString(tensors_, name);
    Put(tensors_, static_cast<uint32_t>(ne.size()));
    uint64_t count = 1;
    for (const int64_t n : ne) {
      Put(tensors_, n);
      count *= static_cast<uint64_t>(n);
    }
    Put(tensors_, type);
    Put(tensors_, next_offset_);
    const ggml_type t = static_cast<ggml_type>(type);
    if (type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(t) > 0) {
      data_bytes_ = next_offset_ + count / static_cast<uint64_t>(ggml_blck_size(t)) * ggml_type_size(t);
      next_offset_ = (data_bytes_ + 31) / 32 * 32;
    }
    ++num_tensors_;
    return *this;
  }
  /// The next tensor claims to start so many bytes too late.
  GgufBuilder& SkewOffset(uint64_t bytes) {
    next_offset_ += bytes;
    return *this;
  }

  std::string Header() const {
    std::string out = "GGUF";
    Put(out, uint32_t{3});
    Put(out, num_tensors_);
    Put(out, num_values_);
    return out + values_ + tensors_;
  }
  std::string File() const {
    std::string out = Header();
    if (num_tensors_ > 0) out.resize((out.size() + 31) / 32 * 32 + data_bytes_);
    return out;
  }

  template <typename T>
  static void Put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void PutString(std::string& out, const std::string& text) {
    Put(out, uint64_t{text.size()});
    out += text;
  }

 private:
  void Key(const std::string& key, int32_t type) {
    PutString(values_, key);
    Put(values_, type);
    ++num_values_;
  }
  template <typename T>
  GgufBuilder& Scalar(const std::string& key, int32_t type, T value) {
    Key(key, type);
    Put(values_, value);
    return *this;
  }

  std::string values_, tensors_;
  uint64_t num_values_ = 0, num_tensors_ = 0, next_offset_ = 0, data_bytes_ = 0;
};

/// A header as llama.cpp models have it: 3 layers, 6 heads of 64 over 2 kv heads.
inline GgufBuilder SmallModel() {
  GgufBuilder b;
  b.Text("general.architecture", "llama")
      .Text("general.name", "small")
      .Int("llama.block_count", 3)
      .Int("llama.embedding_length", 384);
  b.Int("llama.context_length", 4096).Int("llama.attention.head_count", 6).Int("llama.attention.head_count_kv", 2);
  b.Float("llama.rope.freq_base", 10000)
      .Texts("tokenizer.ggml.tokens", {"a", "bc", "", "def"})
      .Ints("tokenizer.ggml.token_type", {1, 1, 3, 1});
  b.Tensor("token_embd.weight", GGML_TYPE_F16, {384, 4}).Tensor("blk.0.attn_q.weight", GGML_TYPE_Q4_1, {384, 384});
  return b;
}

/// A file that lives as long as this object.
class TemporaryGguf {
 public:
  explicit TemporaryGguf(const std::string& content) {
    path_ = (std::filesystem::temp_directory_path() / "kvrazor-gguf-XXXXXX").string();
    const int fd = mkstemp(path_.data());
    if (fd < 0) std::abort();
    close(fd);
    Write(content);
  }
  ~TemporaryGguf() { unlink(path_.c_str()); }
  TemporaryGguf(const TemporaryGguf&) = delete;
  TemporaryGguf& operator=(const TemporaryGguf&) = delete;

  void Write(const std::string& content) const {
    std::FILE* file = std::fopen(path_.c_str(), "wb");
    if (!file || std::fwrite(content.data(), 1, content.size(), file) != content.size() || std::fclose(file) != 0)
      std::abort();
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace kvrazor::eval

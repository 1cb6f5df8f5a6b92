// GGUF files: any bytes are either refused with a reason or are a header whose every tensor lies in the file, that gguf reads
// alike, and whose shape can be told or is refused with a reason.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include <sys/mman.h>
#include <unistd.h>

#include "eval/gguf_header.h"
#include "eval/model_shape.h"
#include "ggml.h"
#include "gguf.h"
#include "kvrazor/error.h"
#include "tests/eval/gguf_builder.h"
#include "tests/fuzz/seeds.h"

using namespace kvrazor;

namespace {

/// A file without a name.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : fd_(memfd_create("gguf_fuzz", MFD_CLOEXEC)) {
    for (size_t done = 0; done < size;) {
      const ssize_t n = write(fd_, data + done, size - done);
      if (n <= 0) fuzz::Crash("no memory file");
      done += static_cast<size_t>(n);
    }
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

template <typename Fn>
bool Refused(const Fn& fn) {
  try {
    fn();
    return false;
  } catch (const Error& error) {
    if (std::string_view(error.what()).empty()) fuzz::Crash("an error without a reason");
    return true;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  eval::GgufHeader header;
  if (Refused([&] { header = eval::ReadGgufHeader(file.path()); })) return 0;
  for (const eval::GgufTensor& tensor : header.tensors) {
    if (header.data_offset + tensor.offset + tensor.bytes > size) fuzz::Crash("a tensor ends behind the file");
  }
  eval::ModelShape shape;
  if (!Refused([&] { shape = eval::ShapeOf(header); })) {
    if (shape.layers.empty() || shape.f16_bytes_per_token() < 0) fuzz::Crash("a shape that no model has");
  }
  gguf_context* gguf = gguf_init_from_file(file.path().c_str(), {.no_alloc = true, .ctx = nullptr});
  if (gguf && gguf_get_n_tensors(gguf) != std::ssize(header.tensors)) fuzz::Crash("gguf sees other tensors");
  gguf_free(gguf);
  return 0;
}

std::vector<std::string> fuzz::Seeds() {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  std::vector<std::string> seeds = {eval::SmallModel().File(), eval::SmallModel().Header(), eval::GgufBuilder().File()};
  eval::GgufBuilder hybrid;
  hybrid.Text("general.architecture", "gemma2").Int("gemma2.block_count", 2).Int("gemma2.embedding_length", 64);
  hybrid.Int("gemma2.context_length", 512)
      .Int("gemma2.attention.head_count", 2)
      .Ints("gemma2.attention.head_count_kv", {2, 1});
  hybrid.Int("gemma2.attention.key_length", 32).Int("gemma2.attention.sliding_window", 64).Int("general.alignment", 64);
  hybrid.Texts("tokenizer.ggml.tokens", {"a", "b"}).Tensor("token_embd.weight", GGML_TYPE_F32, {64, 2});
  seeds.push_back(hybrid.File());
  return seeds;
}

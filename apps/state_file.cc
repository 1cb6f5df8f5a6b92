// Restoring a slot of the server from a file. llama.cpp's own reader ends the program (GGML_ASSERT) when the file is shorter than what
// it says; its reader of states in memory does not. This function takes the place of the former in our program: a symbol of the
// executable goes before that of a shared library. Same files, same results.
#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr size_t kHeaderBytes = 3 * sizeof(uint32_t);  // magic, version, number of tokens
constexpr size_t kMarkBytes =
    2 * sizeof(uint32_t);  // in memory, before the state: a mark and the sequence it was saved from

size_t Refuse(const char* path, const std::string& why) {
  fmt::print(stderr, "kvrazor: '{}' cannot be restored: {}\n", path, why);
  return 0;
}

}  // namespace

extern "C" size_t llama_state_seq_load_file(llama_context* context, const char* path, llama_seq_id sequence,
                                            llama_token* tokens, size_t token_capacity, size_t* token_count) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return Refuse(path, "no such file, or it may not be read");
  const std::streamoff end = file.tellg();
  const size_t size = end > 0 ? static_cast<size_t>(end) : 0;
  uint32_t header[3] = {};
  file.seekg(0);
  if (size < kHeaderBytes || !file.read(reinterpret_cast<char*>(header), kHeaderBytes))
    return Refuse(path, "it is cut short");
  if (header[0] != LLAMA_STATE_SEQ_MAGIC || header[1] != LLAMA_STATE_SEQ_VERSION)
    return Refuse(path, "it is no saved slot of this version of llama.cpp");
  const size_t count = header[2];
  if (count > (size - kHeaderBytes) / sizeof(llama_token)) return Refuse(path, "it is cut short, or damaged");
  *token_count = count;
  if (!tokens) return kHeaderBytes;
  if (count > token_capacity)
    return Refuse(path, fmt::format("it holds {} tokens, there is room for {}", count, token_capacity));

  // The mark is llama.cpp's own: taken from what it writes for the sequence, emptied as restoring does.
  llama_memory_seq_rm(llama_get_memory(context), sequence, -1, -1);
  std::vector<uint8_t> state(llama_state_seq_get_size(context, sequence));
  if (llama_state_seq_get_data(context, state.data(), state.size(), sequence) < kMarkBytes)
    return Refuse(path, "this model's context has no state");
  const size_t state_bytes = size - kHeaderBytes - count * sizeof(llama_token);
  state.resize(kMarkBytes + state_bytes);
  if (!file.read(reinterpret_cast<char*>(tokens), static_cast<std::streamsize>(count * sizeof(llama_token))) ||
      !file.read(reinterpret_cast<char*>(state.data() + kMarkBytes), static_cast<std::streamsize>(state_bytes)))
    return Refuse(path, "reading it failed");
  if (llama_state_seq_set_data(context, state.data(), state.size(), sequence) == 0) {
    llama_memory_seq_rm(llama_get_memory(context), sequence, -1, -1);
    return Refuse(path, "it is cut short, damaged, or of another model or context (llama.cpp says which above)");
  }
  return size;
}

// Saved states through the plug-in: whatever was done to the bytes, loading them ends with a status, damage to a packed page is
// counted, the sequence beside it computes what it would have computed, and the context can be saved, loaded and used after it.
// An input: which state, into which kind of context, then changes of its bytes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kvrazor/ggml.h"
#include "llama.h"
#include "tests/fuzz/seeds.h"
#include "tests/integrations/ggml/tiny_model.h"

using kvrazor::fuzz::Crash;

namespace {

constexpr int kSlots = 1024, kBeside = 150, kChunk = 256;
constexpr const char* kRecipes[] = {"oscar", "razor-2", "f16", "off", "ott:exact-from=0"};
constexpr int kLengths[] = {600, 130, 3};

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t Byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  uint32_t Word() {
    uint32_t x = 0;
    for (int i = 0; i < 4; ++i) x = x << 8 | Byte();
    return x;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Free {
  void operator()(llama_context* c) const { llama_free(c); }
};
using Context = std::unique_ptr<llama_context, Free>;

llama_token Token(int position, int sequence) { return 3 + (position * 37 + sequence * 101 + position / 7) % 256; }

struct Host {
  llama_model* model = nullptr;
  int vocabulary = 0;

  static const Host& Get() {
    static const Host host;
    return host;
  }

  Context New(const char* recipe, bool unified) const {
    char error[512];
    if (!kvrazor_ggml_set_recipe(recipe, false, error, sizeof(error))) Crash(error);
    llama_context_params p = llama_context_default_params();
    p.n_ctx = unified ? kSlots : 2 * kSlots;
    p.n_batch = p.n_ubatch = kChunk;
    p.n_seq_max = 2;
    p.kv_unified = unified;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.n_threads = p.n_threads_batch = 1;
    p.no_perf = true;
    return Context(llama_init_from_model(model, p));
  }

 private:
  Host() {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    char error[512];
    if (!kvrazor_ggml_attach(error, sizeof(error))) Crash(error);
    const kvrazor::ggml_test::TinyModelFolder models;
    model = llama_model_load_from_file(models.Path("llama").c_str(), llama_model_default_params());
    if (!model) Crash("the tiny model cannot be loaded");
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  }
};

/// Logits of the last token.
std::vector<float> Decode(llama_context* c, int first, int count, int sequence) {
  for (int done = 0; done < count; done += kChunk) {
    const int n = std::min(kChunk, count - done);
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
      batch.token[i] = Token(first + done + i, sequence);
      batch.pos[i] = first + done + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = sequence;
      batch.logits[i] = i == n - 1;
    }
    const int status = llama_decode(c, batch);
    llama_batch_free(batch);
    if (status != 0) Crash("llama_decode returns " + std::to_string(status));
  }
  const float* logits = llama_get_logits_ith(c, -1);
  return {logits, logits + Host::Get().vocabulary};
}

std::vector<uint8_t> Save(llama_context* c, int sequence) {
  std::vector<uint8_t> state(llama_state_seq_get_size(c, sequence));
  if (llama_state_seq_get_data(c, state.data(), state.size(), sequence) != state.size())
    Crash("a state cannot be saved");
  return state;
}

/// Of sequence 0 in a context of its own, made once. llama.cpp reads states of unified caches into such only.
const std::vector<uint8_t>& SavedState(size_t recipe, size_t length, bool unified) {
  static std::map<std::tuple<size_t, size_t, bool>, std::vector<uint8_t>> states;
  std::vector<uint8_t>& state = states[{recipe, length, unified}];
  if (state.empty()) {
    const Context c = Host::Get().New(kRecipes[recipe], unified);
    Decode(c.get(), 0, kLengths[length], 0);
    state = Save(c.get(), 0);
  }
  return state;
}

/// What sequence 1 computes with nothing beside it.
const std::vector<float>& Undisturbed(size_t recipe) {
  static std::map<size_t, std::vector<float>> logits;
  std::vector<float>& known = logits[recipe];
  if (known.empty()) {
    const Context c = Host::Get().New(kRecipes[recipe], false);
    Decode(c.get(), 0, kBeside, 1);
    known = Decode(c.get(), kBeside, 3, 1);
  }
  return known;
}

void Change(std::vector<uint8_t>& state, Input& in) {
  const auto at = [&] { return state.empty() ? size_t{0} : in.Word() % state.size(); };
  const auto length = [&](size_t from) {
    return std::min(state.size() - std::min(from, state.size()), size_t{1} << in.Byte() % 18);
  };
  switch (in.Byte() % 8) {
    case 0:
      if (!state.empty()) state[at()] ^= static_cast<uint8_t>(1 << in.Byte() % 8);
      break;
    case 1:
      if (!state.empty()) state[at()] = in.Byte();
      break;
    case 2: state.resize(at()); break;
    case 3: {
      const size_t from = at();
      std::fill_n(state.begin() + static_cast<ptrdiff_t>(from), length(from), in.Byte());
      break;
    }
    case 4: {  // moves what follows
      const size_t from = at();
      const auto begin = state.begin() + static_cast<ptrdiff_t>(from);
      state.erase(begin, begin + static_cast<ptrdiff_t>(length(from)));
      break;
    }
    case 5: state.insert(state.begin() + static_cast<ptrdiff_t>(at()), size_t{1} << in.Byte() % 12, in.Byte()); break;
    case 6: {
      const size_t from = at(), to = at();
      const size_t count = std::min(length(from), length(to));
      std::memmove(state.data() + to, state.data() + from, count);
      break;
    }
    default: {  // a sealed page's header: its fields are the first 104 bytes behind the mark
      constexpr uint8_t kMark[] = {0xff, 0xff, 'k', 'v', 'r', 'a', 'z', 'o', 'r'};
      auto found =
          std::search(state.begin() + static_cast<ptrdiff_t>(at()), state.end(), std::begin(kMark), std::end(kMark));
      if (state.end() - found > 104) found[16 + in.Byte() % 88] = in.Byte();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  const size_t saved_with = in.Byte() % std::size(kRecipes), length = in.Byte() % std::size(kLengths);
  const size_t loaded_with = in.Byte() % std::size(kRecipes);
  const bool unified = in.Byte() % 2;
  std::vector<uint8_t> state = SavedState(saved_with, length, unified);
  const std::vector<uint8_t> original = state;
  for (int changes = 0; changes < 16 && !in.empty(); ++changes) Change(state, in);

  const Context c = Host::Get().New(kRecipes[loaded_with], unified);
  if (!c) Crash("no context");
  Decode(c.get(), 0, kBeside, 1);
  kvrazor_ggml_reset_counters();
  const size_t read = llama_state_seq_set_data(c.get(), state.data(), state.size(), 0);
  kvrazor_ggml_stats stats;
  kvrazor_ggml_get_stats(&stats);
  if (state == original && (read != state.size() || (saved_with == loaded_with && stats.state_errors != 0)))
    Crash(std::string("an undamaged state of recipe ") + kRecipes[saved_with] + ", loaded with " +
          kRecipes[loaded_with] + (unified ? ", unified" : "") + ", is refused: " + std::to_string(read) + " of " +
          std::to_string(state.size()) + " bytes read, " + std::to_string(stats.state_errors) + " errors");
  if (stats.total_bytes < 0 || stats.staging_bytes < 0 || stats.packed_bytes < 0) Crash("statistics are negative");

  const std::vector<float> beside = Decode(c.get(), kBeside, 3, 1);
  if (!unified && beside != Undisturbed(loaded_with)) Crash("the sequence beside it computes something else");
  for (const float x : beside) {
    if (!std::isfinite(x)) Crash("the sequence beside it computes what is not a number");
  }
  // The same slots can be used again.
  if (read == 0) llama_memory_seq_rm(llama_get_memory(c.get()), 0, -1, -1);
  const std::vector<uint8_t> again = Save(c.get(), 0);
  llama_memory_seq_rm(llama_get_memory(c.get()), 0, -1, -1);
  const Context other = Host::Get().New(kRecipes[loaded_with], false);
  llama_state_seq_set_data(other.get(), again.data(), again.size(), 0);
  for (const float x : Decode(c.get(), 0, 20, 0)) {
    if (!std::isfinite(x)) Crash("a new sequence computes what is not a number");
  }
  return 0;
}

std::vector<std::string> kvrazor::fuzz::Seeds() {
  std::vector<std::string> seeds;
  for (int saved = 0; saved < 5; ++saved) {
    for (int loaded = 0; loaded < 5; ++loaded) {
      for (const std::string changes : {std::string(), std::string("\0\0\1\xff\xff\3", 6), std::string("\2\0\5\0\0", 5),
                                        std::string("\3\0\2\0\0\x0e\xff", 7), std::string("\4\0\1\1\1\5", 6),
                                        std::string("\7\0\0\0\0\3\x55\7\0\2\0\0\x20\1", 14)}) {
        std::string seed = {static_cast<char>(saved), static_cast<char>(changes.size() % 2), static_cast<char>(loaded),
                            static_cast<char>(loaded % 2)};
        seeds.push_back(seed + changes);
      }
    }
  }
  return seeds;
}

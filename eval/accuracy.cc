#include "eval/accuracy.h"

#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "eval/model.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

class Batch {
 public:
  explicit Batch(int32_t capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
  ~Batch() { llama_batch_free(batch_); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  void Clear() { batch_.n_tokens = 0; }
  void Add(llama_token token, int64_t position, bool wants_logits) {
    const int32_t i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = static_cast<llama_pos>(position);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = 0;
    batch_.logits[i] = wants_logits;
  }
  const llama_batch& get() const { return batch_; }

 private:
  llama_batch batch_;
};

}  // namespace

std::vector<int64_t> SamplePositions(int64_t context, int64_t first, int64_t max_positions) {
  const int64_t end = context - 1;  // the last token has no next one to predict
  if (max_positions < 1 || first < 0 || first >= end)
    throw Error(fmt::format(
        "accuracy: no position in [{}, {}) to compare (at most {} asked for). Use a longer context or text.", first,
        end, max_positions));
  const int64_t step = (end - first + max_positions - 1) / max_positions;
  std::vector<int64_t> positions;
  for (int64_t p = first; p < end; p += step) positions.push_back(p);
  return positions;
}

ReferenceFile ReferenceFile::Create(const std::string& folder, int64_t bytes) {
  struct statvfs disk = {};
  if (statvfs(folder.c_str(), &disk) == 0) {
    const uint64_t free_bytes = uint64_t{disk.f_bavail} * disk.f_frsize;
    if (static_cast<uint64_t>(bytes) > free_bytes)
      throw Error(fmt::format(
          "the reference takes {} MiB in '{}', which has {} MiB left. Use fewer --positions or another --out.",
          bytes >> 20, folder, free_bytes >> 20));
  }
  std::string path = folder + "/.kvrazor-reference-XXXXXX";
  const int fd = mkstemp(path.data());
  if (fd < 0)
    throw Error(
        fmt::format("cannot write into the folder '{}': {}. Choose another with --out.", folder, std::strerror(errno)));
  unlink(path.c_str());
  return ReferenceFile(fd, /*owned=*/true);
}

ReferenceFile::~ReferenceFile() {
  if (owned_) close(fd_);
}

void ReferenceFile::Write(int64_t position_index, std::span<const float> log_probs) {
  const char* data = reinterpret_cast<const char*>(log_probs.data());
  const int64_t bytes = static_cast<int64_t>(log_probs.size_bytes());
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = pwrite(fd_, data + done, static_cast<size_t>(bytes - done), position_index * bytes + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw Error(
          fmt::format("cannot write the reference: {}. Free some space, use fewer --positions or another --out.",
                      std::strerror(n < 0 ? errno : ENOSPC)));
    done += n;
  }
}

void ReferenceFile::Read(int64_t position_index, std::span<float> log_probs) const {
  char* data = reinterpret_cast<char*>(log_probs.data());
  const int64_t bytes = static_cast<int64_t>(log_probs.size_bytes());
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n = pread(fd_, data + done, static_cast<size_t>(bytes - done), position_index * bytes + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw Error(fmt::format("cannot read the reference: {}.", n < 0 ? std::strerror(errno) : "it ends too early"));
    done += n;
  }
}

std::vector<PositionAgreement> MeasurePositions(llama_context* context, std::span<const llama_token> tokens,
                                                std::span<const int64_t> positions, ReferenceFile* reference,
                                                ReferenceUse use, const std::function<void(int64_t)>& progress,
                                                bool seal_newest) {
  const size_t vocabulary = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context))));
  std::vector<float> log_probs(vocabulary);
  std::vector<float> reference_log_probs(use == ReferenceUse::kNone ? 0 : vocabulary);
  std::vector<PositionAgreement> result;
  Batch batch(kAccuracyBatch);
  size_t next_position = 0;  // index into positions
  for (int64_t begin = 0; begin < std::ssize(tokens) && next_position < positions.size(); begin += kAccuracyBatch) {
    const int64_t end = std::min<int64_t>(begin + kAccuracyBatch, std::ssize(tokens));
    batch.Clear();
    size_t wanted = next_position;
    for (int64_t p = begin; p < end; ++p) {
      const bool is_wanted = wanted < positions.size() && positions[wanted] == p;
      wanted += is_wanted;
      batch.Add(tokens[static_cast<size_t>(p)], p, is_wanted);
    }
    for (int pass = seal_newest ? 0 : 1; pass < 2; ++pass) {
      if (const int32_t status = llama_decode(context, batch.get()); status != 0)
        throw Error(fmt::format("llama.cpp failed at tokens {} to {} (status {}):\n{}", begin, end - 1, status,
                                RecentProblems()));
      if (pass == 0 && !llama_memory_seq_rm(llama_get_memory(context), 0, static_cast<llama_pos>(begin), -1))
        throw Error("llama.cpp cannot take tokens back from this model's cache (recurrent layers, for example).");
    }
    for (; next_position < wanted; ++next_position) {
      const int64_t p = positions[next_position];
      const float* logits = llama_get_logits_ith(context, static_cast<int32_t>(p - begin));
      if (!logits) throw Error(fmt::format("llama.cpp computed no logits for token {}.", p));
      LogSoftmax({logits, vocabulary}, log_probs);
      const int64_t index = static_cast<int64_t>(next_position);
      if (use == ReferenceUse::kWrite) reference->Write(index, log_probs);
      if (use != ReferenceUse::kNone) reference->Read(index, reference_log_probs);
      result.push_back(ComparePosition(p, reference_log_probs, log_probs, tokens[static_cast<size_t>(p + 1)]));
    }
    if (progress) progress(end);
  }
  return result;
}

}  // namespace kvrazor::eval

// How far a cache's next-token distributions are from those of llama.cpp's 16-bit cache over the same text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "eval/distribution.h"
#include "llama.h"

namespace kvrazor::eval {

/// Tokens computed at once in the accuracy pass: one page, so that all tokens but those of the newest pages are read back from
/// the cache, as in decoding, and not from the batch's own 16 bits.
inline constexpr int kAccuracyBatch = 128;

/// Positions whose next-token distribution is compared: evenly spaced in [first, context - 2], at most max_positions.
/// Throws Error if there is none.
std::vector<int64_t> SamplePositions(int64_t context, int64_t first, int64_t max_positions);

/// The reference's log-probabilities in a file that has no name any more: whatever ends the program removes it.
/// File: [positions][vocabulary] float32.
class ReferenceFile {
 public:
  /// Creates it in the folder; Throws Error if that is impossible or the disk has less free space than `bytes`.
  static ReferenceFile Create(const std::string& folder, int64_t bytes);
  /// Uses a descriptor that the parent process has opened; does not close it.
  static ReferenceFile Borrow(int fd) { return ReferenceFile(fd, /*owned=*/false); }

  ReferenceFile(ReferenceFile&& other) noexcept : fd_(other.fd_), owned_(other.owned_) { other.owned_ = false; }
  ReferenceFile& operator=(ReferenceFile&&) = delete;
  ~ReferenceFile();

  int fd() const { return fd_; }
  void Write(int64_t position_index, std::span<const float> log_probs);
  void Read(int64_t position_index, std::span<float> log_probs) const;

 private:
  ReferenceFile(int fd, bool owned) : fd_(fd), owned_(owned) {}
  int fd_ = -1;
  bool owned_ = false;
};

/// How MeasurePositions uses the reference file.
enum class ReferenceUse {
  kNone,     ///< perplexity alone
  kWrite,    ///< this is the reference
  kCompare,  ///< compare with what was written before
};

/// Runs the tokens through the context (empty, with a batch of kAccuracyBatch) and looks at `positions`, ascending.
/// `reference` may be null with kNone only. What is written is read back, so kWrite gives a divergence of 0.
/// `seal_newest`: each kAccuracyBatch is computed, taken back and computed again, by when the page before it is sealed: nothing
/// but a batch's own tokens is read from 16 bits. The last batch must be a whole one.
std::vector<PositionAgreement> MeasurePositions(llama_context* context, std::span<const llama_token> tokens,
                                                std::span<const int64_t> positions, ReferenceFile* reference,
                                                ReferenceUse use, const std::function<void(int64_t)>& progress,
                                                bool seal_newest = false);

}  // namespace kvrazor::eval

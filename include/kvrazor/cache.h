// The packed KV cache of a model: pages, page tables, 16-bit windows, sequences.
//
// A page is 128 tokens of one sequence for all layers. The newest tokens stand in 16-bit pages; a page is sealed
// (quantized, once and for good) by the Commit after which it is full and Recipe::residual_tokens more tokens stand
// behind it in full 16-bit pages. One step of a model:
//
//     Begin(new tokens of each sequence)          room for the step, or kOutOfPages and nothing has changed
//     for each layer:  Append(layer, k, v)        rows of the new tokens, all sequences of the step after each other
//                      AddQueries(layer, q)       only razor keys use them; anything else ignores the call
//                      Attend(layer, q, out)      new tokens see what came before them and themselves
//     Commit(sequences)                           the tokens are the sequences' now; pages that are ready are sealed
//
// The layers of a step come in order, 0 first. Several steps over disjoint sequences may be under way at once.
//
// Threads: const member functions may run at the same time on any threads; every other one must have the cache to
// itself (the Executor given to it only spreads its own work).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvrazor/error.h"
#include "kvrazor/executor.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "kvrazor/tensor.h"

namespace kvrazor {

class Backend;

/// A sequence of a cache. Values are never used again, so a handle that was freed stays invalid.
enum class SequenceId : int64_t {};
inline constexpr SequenceId kNoSequence{-1};

struct CacheOptions {
  int num_layers = 0;
  HeadShape shape;  ///< of every layer
  Recipe recipe;    ///< its overrides say what single layers do instead

  /// What the page pools are sized for: Begin never runs out of pages within these limits. They bind nothing else.
  int64_t max_tokens = 0;  ///< held by all sequences together; pages shared by forks count once
  int max_sequences = 1;
  int64_t max_new_tokens = 512;  ///< of one step, all its sequences together; prefill chunks are cut to this

  /// Pages of each pool, instead of what follows from the limits; 0: from the limits.
  int64_t sealed_pages = 0;
  int64_t f16_pages = 0;

  int query_stride = 4;              ///< AddQueries takes the positions that are multiples of this
  const Backend* backend = nullptr;  ///< nullptr: the CPU's; otherwise it must outlive the cache
};

/// The most memory that a cache with these options takes; addresses are reserved when it is made.
struct CachePlan {
  int64_t sealed_pages = 0;
  int64_t f16_pages = 0;
  int64_t sealed_page_bytes = 0;  ///< all layers; 0 if the recipe never seals
  int64_t f16_page_bytes = 0;     ///< all layers
  int64_t pool_bytes = 0;
  int64_t moment_bytes = 0;  ///< second moments of the queries (razor keys)
  int64_t exact_bytes = 0;   ///< rows in 16 bits beside sealed pages: sinks and outlier tokens of max_sequences
};
/// Throws Error where Cache's constructor would.
CachePlan PlanCache(const CacheOptions& options);

/// Counts and bytes are exact. A page that several forks share counts once. 16-bit rows take memory as they are written, in
/// whole system pages, and give it back when they are sealed, rolled back or freed.
struct CacheStats {
  int64_t num_sequences = 0;
  int64_t num_tokens = 0;  ///< sum of kv_len; tokens shared by forks count once for each

  int64_t sealed_pages = 0, sealed_pages_used = 0,
          sealed_pages_peak = 0;  ///< used: those that a begun step will seal, too
  int64_t f16_pages = 0, f16_pages_used = 0, f16_pages_peak = 0;
  int64_t shared_pages = 0;  ///< pages that more than one sequence reads

  int64_t sealed_bytes = 0;    ///< sealed sides of the pages that are sealed
  int64_t f16_side_bytes = 0;  ///< sides of these pages that the recipe keeps in 16 bits
  int64_t window_bytes = 0;    ///< 16-bit rows of the pages that are not
  int64_t exact_bytes = 0;     ///< sinks and outlier tokens of sealed pages, in 16 bits
  int64_t table_bytes = 0;     ///< page records, page tables, second moments
  int64_t total_bytes = 0;     ///< sum of the five above
  int64_t peak_bytes = 0;      ///< highest total_bytes so far
  int64_t pool_bytes = 0;      ///< reserved for pages, in use or not

  int64_t pages_sealed = 0;  ///< since the cache was made
  int64_t pages_thawed = 0;
  int64_t pages_copied = 0;  ///< 16-bit pages copied because a fork wrote to them

  /// Of the sealed pages, all layers, parameters and outlier tokens included, sinks not; with none, of a page without outlier
  /// tokens. 16 if the recipe never seals.
  double bits_per_value = 0;

  bool operator==(const CacheStats&) const = default;
};

/// One sequence's part of a step.
struct NewTokens {
  SequenceId seq = kNoSequence;
  int64_t count = 0;  ///< >= 1
};

struct AttendOptions {
  float softmax_scale = 0;  ///< 0: 1 / sqrt(head_dim)
  float logit_softcap = 0;  ///< 0: none, else logit = softcap * tanh(logit / softcap)
  /// f16 bits added to the logits, [rows of q][mask_stride], column = position in the row's own sequence; -inf hides a
  /// key. nullptr: causal.
  const uint16_t* mask = nullptr;
  int64_t mask_stride = 0;
  const float* alibi_slopes = nullptr;  ///< [num_qo_heads] factor on the mask, or nullptr
  const float* sink_logits = nullptr;   ///< [num_qo_heads] extra logit in the denominator only, or nullptr
  float* lse = nullptr;                 ///< [rows of q][num_qo_heads] natural log of the denominator, or nullptr
};

class Cache {
 public:
  /// Reserves both page pools. Throws Error if an option is impossible or the memory cannot be had.
  explicit Cache(const CacheOptions& options);
  ~Cache();
  Cache(Cache&&) noexcept;
  Cache& operator=(Cache&&) noexcept;

  const CacheOptions& options() const;
  const PageLayout& layout(int layer, Side side) const;

  // Sequences. All throw Error for a handle that is not open.

  /// An empty sequence.
  SequenceId Open();
  /// Gives its pages back. A step it was in is cancelled for it.
  void Free(SequenceId seq);
  bool IsOpen(SequenceId seq) const;
  /// Tokens committed; of these, tokens in sealed pages (a multiple of 128).
  int64_t kv_len(SequenceId seq) const;
  int64_t sealed_len(SequenceId seq) const;

  /// A second sequence with the same tokens. Pages are shared; the 16-bit page at the end is copied when one of the two
  /// writes to it. Takes no page. Throws Error while `seq` is in a step.
  SequenceId Fork(SequenceId seq);

  /// Drops the newest tokens, as a rejected draft: at most kv_len - sealed_len. Exact: what is left is as if they had
  /// never been there. Throws Error for more (Truncate can), or while `seq` is in a step.
  void RollBack(SequenceId seq, int64_t tokens);

  /// Keeps the first `kv_len` tokens. Exact as RollBack down to sealed_len and at every multiple of 128 below it.
  /// Elsewhere the page cut is thawed: its tokens are dequantized to 16 bits and quantized once more when the page is
  /// sealed again (sinks stay exact). That takes a 16-bit page; kOutOfPages: nothing has changed.
  [[nodiscard]] Status Truncate(SequenceId seq, int64_t kv_len);

  // A step. All throw Error, with nothing changed, if a handle, layer, shape or the order is wrong.

  /// Makes room. kOutOfPages: nothing has changed; free a sequence, or take fewer tokens, and call again.
  ///   step  each sequence at most once, none of them in a step
  ///   cost  no allocation but for a growing page table; copies the last page of a sequence that shares it with a fork
  [[nodiscard]] Status Begin(std::span<const NewTokens> step);

  /// Stores the new tokens of one layer.
  ///   seqs  sequences of begun steps that have this layer next
  ///   k, v  [new tokens of all seqs, in their order][num_kv_heads][head_dim] f32, f16 or bf16; k after RoPE, not
  ///         rotated. Stored in 16 bits, rounded to nearest even; finite values beyond f16's range become its largest
  void Append(int layer, std::span<const SequenceId> seqs, const TensorView& k, const TensorView& v);

  /// Attention of the new tokens over their sequences, themselves included. The layer must have been appended.
  ///   q    [new tokens of all seqs, in their order][num_qo_heads][head_dim], after RoPE, not rotated; query head h reads
  ///        kv head h / (num_qo_heads / num_kv_heads)
  ///   out  the same shape; a row that sees no key is 0
  void Attend(int layer, std::span<const SequenceId> seqs, const TensorView& q, const MutableTensorView& out,
              const AttendOptions& options = {}, Executor& executor = SerialExecutor()) const;

  /// Shows the queries of the new tokens to the sealer of razor keys. Before or after Attend, after Append.
  void AddQueries(int layer, std::span<const SequenceId> seqs, const TensorView& q);

  /// Ends the step of these sequences: every layer must have been appended. Seals the pages that are ready.
  void Commit(std::span<const SequenceId> seqs, Executor& executor = SerialExecutor());

  /// Ends the step as if it had not begun.
  void Cancel(std::span<const SequenceId> seqs);

  // The same for a single sequence.

  [[nodiscard]] Status Begin(SequenceId seq, int64_t new_tokens) {
    const NewTokens step{seq, new_tokens};
    return Begin({&step, 1});
  }
  void Append(int layer, SequenceId seq, const TensorView& k, const TensorView& v) { Append(layer, {&seq, 1}, k, v); }
  void Attend(int layer, SequenceId seq, const TensorView& q, const MutableTensorView& out,
              const AttendOptions& options = {}, Executor& executor = SerialExecutor()) const {
    Attend(layer, {&seq, 1}, q, out, options, executor);
  }
  void AddQueries(int layer, SequenceId seq, const TensorView& q) { AddQueries(layer, {&seq, 1}, q); }
  void Commit(SequenceId seq, Executor& executor = SerialExecutor()) { Commit({&seq, 1}, executor); }
  void Cancel(SequenceId seq) { Cancel({&seq, 1}); }

  // Looking in.

  /// Values of committed tokens [first, last) as attention sees them: not rotated, dequantized where sealed.
  ///   out  [last - first][num_kv_heads][head_dim]
  void Read(SequenceId seq, int layer, Side side, int64_t first, int64_t last, float* out) const;

  /// The bytes of a sealed page (layout(layer, side) says what they mean); empty if page `page` of the sequence is not
  /// sealed or its side is kept in 16 bits. They never change while the sequence keeps the page.
  std::span<const std::byte> SealedPage(SequenceId seq, int layer, Side side, int64_t page) const;

  CacheStats Stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvrazor

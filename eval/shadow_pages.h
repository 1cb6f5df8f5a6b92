// When pages of a layer are sealed: the plug-in's rule, without its storage.
#pragma once

#include <cstdint>
#include <vector>

#include "src/ops/page_set.h"

namespace kvrazor::eval {

/// Slots 0, 1, ... of one layer, in pages of 128. A page is due once it is full and residual_tokens newer tokens stand behind it
/// in full pages that are not sealed. Writing to a sealed page makes it one that is not.
class ShadowPages {
 public:
  ShadowPages(int64_t num_slots, int residual_tokens);

  /// The slot is written to. is_sink: the token keeps its 16 bits when the page is sealed.
  void Write(int64_t slot, bool is_sink);
  /// Pages to seal now, oldest first.
  std::vector<int64_t> Due() const;
  /// Tokens of a page that is due keep their 16 bits as well.
  void Choose(int64_t page, const TokenMask& tokens) { pages_[static_cast<size_t>(page)].chosen |= tokens; }
  void MarkSealed(int64_t page);

  int64_t num_slots() const { return num_slots_; }
  /// Tokens that keep their 16 bits.
  TokenMask exact(int64_t page) const;

  int64_t num_sealed() const { return num_sealed_; }
  int64_t num_written() const { return num_written_; }  ///< slots that were ever written to
  int64_t num_sealed_exact() const;                     ///< tokens of sealed pages that kept their 16 bits
  int64_t num_sealed_chosen() const;                    ///< of these, those that are no sinks

 private:
  struct Page {
    TokenMask written, sinks, chosen;
    bool sealed = false;
  };
  Page& PageOf(int64_t slot) { return pages_[static_cast<size_t>(slot / kPageTokens)]; }

  int64_t num_slots_;
  int64_t residual_pages_;
  std::vector<Page> pages_;
  std::vector<int64_t> full_;  // not sealed, all slots written; the one written to last at the back
  int64_t num_sealed_ = 0;
  int64_t num_written_ = 0;
};

}  // namespace kvrazor::eval

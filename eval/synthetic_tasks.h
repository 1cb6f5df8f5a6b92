// Tasks made from random words and numbers: needles in a text, passkeys, and the kinds of RULER (arXiv:2404.06654). The texts are
// our own; kinds, numbers of keys and values, lengths of answers and the scoring (MatchAll) are RULER's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/prompt.h"

namespace kvrazor::eval {

/// SplitMix64: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  /// In [0, end), end > 0.
  uint64_t Below(uint64_t end) { return Next() % end; }
  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Below(i)]);
  }

 private:
  uint64_t state_;
};

struct SyntheticChoice {
  std::string task;       ///< one of SyntheticTasks()
  int64_t tokens = 4096;  ///< prompt and answer together, at most
  int64_t index = 0;      ///< which of the items
  uint64_t seed = 1;
  double depth = -1;  ///< for needle and passkey: 0 begin, 1 end; -1: random
};

/// needle, passkey, niah_single, niah_multikey, niah_multivalue, niah_multiquery, vt (variable tracking), cwe (common words).
std::span<const std::string_view> SyntheticTasks();

/// The item, as long as fits: filler sentences come from `haystack` (again from its beginning at its end), or if that is empty
/// are a few fixed ones. `count_tokens` counts the tokens of a prompt as the model reads it, template included. The same choice
/// gives the same item. Throws Error for an unknown task, and if not even an item without filler fits.
PromptItem MakeSyntheticItem(const SyntheticChoice& choice, const std::vector<std::string>& haystack,
                             const std::function<int64_t(const PromptItem&)>& count_tokens);

/// A text as sentences: they end behind ". ", "! ", "? " and at line breaks. Empty ones are left out.
std::vector<std::string> SplitSentences(std::string_view text);

}  // namespace kvrazor::eval

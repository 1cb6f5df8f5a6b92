#include "eval/text_similarity.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "eval/python_text.h"

namespace kvrazor::eval {
namespace {

using Sentence = std::vector<std::u32string>;  // words
using WordSet = std::set<std::u32string>;

// Python's limit is 1000 frames, of which LongBench's callers and the package itself hold the others.
constexpr int kMaxRecursion = 990;

std::vector<Sentence> Sentences(std::u32string_view text) {
  std::vector<Sentence> sentences;
  for (const std::u32string& part : Split(text, U'.')) {
    if (part.empty()) continue;
    Sentence words = SplitWords(part);
    if (words.empty()) words.emplace_back();  // "".split(" ") is one empty word
    sentences.push_back(std::move(words));
  }
  return sentences;
}

WordSet Words(const std::vector<Sentence>& sentences) {
  WordSet words;
  for (const Sentence& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return words;
}

// The package's own choice among the longest common subsequences; nothing if its recursion would be too deep.
std::optional<WordSet> CommonSubsequence(const Sentence& x, const Sentence& y) {
  const size_t columns = y.size() + 1;
  std::vector<int> table((x.size() + 1) * columns, 0);  // [x.size() + 1][y.size() + 1] lengths for prefixes
  for (size_t i = 1; i <= x.size(); ++i) {
    for (size_t j = 1; j <= y.size(); ++j)
      table[i * columns + j] = x[i - 1] == y[j - 1]
                                   ? table[(i - 1) * columns + j - 1] + 1
                                   : std::max(table[(i - 1) * columns + j], table[i * columns + j - 1]);
  }
  WordSet common;
  int depth = 1;
  for (size_t i = x.size(), j = y.size(); i > 0 && j > 0; ++depth) {
    if (x[i - 1] == y[j - 1]) {
      common.insert(x[i - 1]);
      --i, --j;
    } else if (table[(i - 1) * columns + j] > table[i * columns + j - 1]) {
      --i;
    } else {
      --j;
    }
  }
  if (depth > kMaxRecursion) return std::nullopt;
  return common;
}

}  // namespace

double RougeL(std::u32string_view prediction, std::u32string_view reference) {
  const std::vector<Sentence> hypothesis = Sentences(prediction), target = Sentences(reference);
  if (hypothesis.empty() || target.empty()) return 0;
  WordSet found;  // over all pairs of sentences
  for (const Sentence& wanted : target) {
    for (const Sentence& written : hypothesis) {
      const std::optional<WordSet> common = CommonSubsequence(wanted, written);
      if (!common) return 0;
      found.insert(common->begin(), common->end());
    }
  }
  const double count = static_cast<double>(found.size());
  const double recall = count / static_cast<double>(Words(target).size());
  const double precision = count / static_cast<double>(Words(hypothesis).size());
  return 2 * (precision * recall / (precision + recall + 1e-8));
}

int FuzzRatio(std::u32string_view a, std::u32string_view b) {
  if (a == b) return 100;
  if (a.empty() || b.empty()) return 0;
  std::vector<int> row(b.size() + 1, 0);  // longest common subsequence of a's prefix with each of b's
  for (const char32_t c : a) {
    int diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const int above = row[j + 1];
      row[j + 1] = c == b[j] ? diagonal + 1 : std::max(above, row[j]);
      diagonal = above;
    }
  }
  const double ratio = 2.0 * row[b.size()] / static_cast<double>(a.size() + b.size());
  return static_cast<int>(std::nearbyint(100 * ratio));  // to even, as Python rounds
}

}  // namespace kvrazor::eval

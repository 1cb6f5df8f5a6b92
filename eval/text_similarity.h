// How alike two texts are: ROUGE-L as the Python package rouge 1.0.1 computes it, and fuzzywuzzy's ratio.
#pragma once

#include <string_view>

namespace kvrazor::eval {

/// F measure of summary-level ROUGE-L in [0, 1). Sentences end at '.', words at white space, both counted as sets: what
/// rouge 1.0.1 gives for get_scores([prediction], [reference])["rouge-l"]["f"]. 0 where that package fails and its callers
/// give 0: without any sentence, and for a pair of sentences so long that the package exceeds Python's recursion limit
/// (about 990 words).
double RougeL(std::u32string_view prediction, std::u32string_view reference);

/// Whole percent: 2 x longest common subsequence / sum of lengths, which is what fuzzywuzzy's fuzz.ratio gives when
/// python-Levenshtein is installed. 100 for equal texts, else 0 if one is empty.
int FuzzRatio(std::u32string_view a, std::u32string_view b);

}  // namespace kvrazor::eval

// Scores of two multimodal benchmarks from what a model has written.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvrazor::eval {

/// OCRBench (arXiv:2305.07895): 1 if an answer is part of the prediction; letter case and line breaks aside, and for the data set
/// HME100k (formulas) spaces aside but letter case not.
bool OcrBenchHit(std::string_view dataset, std::string_view prediction, std::span<const std::string> answers);
/// The five groups that OCRBench reports, for the ten types of its questions. Throws Error for an unknown type.
std::string_view OcrBenchGroup(std::string_view type);

/// Multiple choice, as the string match of MMAU's evaluation: all words of the answer are in the prediction, and none of those
/// that only other choices have. (MMAU-Pro's own script asks an embedding model which choice is nearest; that is not done here.)
bool ChoiceHit(std::string_view prediction, std::string_view answer, std::span<const std::string> choices);

}  // namespace kvrazor::eval

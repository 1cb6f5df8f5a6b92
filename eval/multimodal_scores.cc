#include "eval/multimodal_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "eval/python_text.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Text = std::u32string;

struct TypeAndGroup {
  std::string_view type, group;
};
constexpr std::array kOcrBench = {
    TypeAndGroup{"Regular Text Recognition", "Text Recognition"},
    TypeAndGroup{"Irregular Text Recognition", "Text Recognition"},
    TypeAndGroup{"Artistic Text Recognition", "Text Recognition"},
    TypeAndGroup{"Handwriting Recognition", "Text Recognition"},
    TypeAndGroup{"Digit String Recognition", "Text Recognition"},
    TypeAndGroup{"Non-Semantic Text Recognition", "Text Recognition"},
    TypeAndGroup{"Scene Text-centric VQA", "Scene Text-centric VQA"},
    TypeAndGroup{"Doc-oriented VQA", "Doc-oriented VQA"},
    TypeAndGroup{"Key Information Extraction", "Key Information Extraction"},
    TypeAndGroup{"Handwritten Mathematical Expression Recognition", "Handwritten Mathematical Expression Recognition"},
};

// str.strip() and line breaks as spaces.
Text Plain(Text text) {
  const auto is_space = [](char32_t c) { return IsSpace(c); };
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  text.erase(std::find_if_not(text.rbegin(), text.rend(), is_space).base(), text.end());
  std::replace(text.begin(), text.end(), U'\n', U' ');
  return text;
}

std::set<Text> WordsOf(std::string_view text) {
  std::set<Text> words;
  Text word;
  for (const char32_t c : Lower(FromUtf8(text)) + U" ") {
    if (IsWordCharacter(c)) {
      word += c;
    } else if (!word.empty()) {
      words.insert(std::move(word));
      word.clear();
    }
  }
  return words;
}

}  // namespace

bool OcrBenchHit(std::string_view dataset, std::string_view prediction, std::span<const std::string> answers) {
  const bool formula = dataset == "HME100k";
  const auto normalized = [formula](std::string_view text) {
    Text plain = Plain(formula ? FromUtf8(text) : Lower(FromUtf8(text)));
    if (formula) std::erase(plain, U' ');
    return plain;
  };
  if (prediction.empty()) return false;  // not answered
  const Text text = normalized(prediction);
  return std::any_of(answers.begin(), answers.end(),
                     [&](const std::string& answer) { return text.find(normalized(answer)) != text.npos; });
}

std::string_view OcrBenchGroup(std::string_view type) {
  for (const TypeAndGroup& entry : kOcrBench) {
    if (entry.type == type) return entry.group;
  }
  throw Error(fmt::format("OCRBench has no questions of the type '{}'.", type));
}

bool ChoiceHit(std::string_view prediction, std::string_view answer, std::span<const std::string> choices) {
  const std::set<Text> written = WordsOf(prediction), wanted = WordsOf(answer);
  if (written.empty()) return false;
  if (!std::includes(written.begin(), written.end(), wanted.begin(), wanted.end())) return false;
  for (const std::string& choice : choices) {
    for (const Text& word : WordsOf(choice)) {
      if (!wanted.contains(word) && written.contains(word)) return false;
    }
  }
  return true;
}

}  // namespace kvrazor::eval

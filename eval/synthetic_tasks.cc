#include "eval/synthetic_tasks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

constexpr std::array<std::string_view, 8> kTasks = {
    "needle", "passkey", "niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe"};
constexpr std::array kFiller = {"The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
                                "There and back again."};
constexpr std::array kAdjectives = {"amber",  "brave",  "calm",   "dusty",   "eager",  "faint",  "gentle", "hollow",
                                    "icy",    "jolly",  "keen",   "lively",  "mellow", "narrow", "odd",    "pale",
                                    "quiet",  "rapid",  "silent", "tidy",    "urban",  "vivid",  "warm",   "young",
                                    "zesty",  "bitter", "clever", "distant", "early",  "fresh",  "golden", "humble",
                                    "little", "modern", "noble",  "polite",  "rough",  "simple", "tender", "upper"};
constexpr std::array kNouns = {"anchor", "basket", "candle", "desert",  "engine",   "forest", "garden",  "harbor",
                               "island", "jacket", "kettle", "ladder",  "market",   "needle", "orchard", "pencil",
                               "quarry", "river",  "saddle", "temple",  "umbrella", "valley", "window",  "yard",
                               "bridge", "castle", "dragon", "feather", "guitar",   "hammer", "lantern", "mirror",
                               "novel",  "ocean",  "planet", "rocket",  "shadow",   "ticket", "village", "wagon"};

// A prompt as lines or sentences, some of which must be there at given places among filler.
struct Draft {
  std::string before, after;         // of the filler
  std::vector<std::string> needles;  // in order
  std::vector<double> depths;        // of each needle, ascending
  PromptItem item;                   // all but the prompt
};

std::string Key(Random& random) {
  return fmt::format("{}-{}", kAdjectives[random.Below(kAdjectives.size())], kNouns[random.Below(kNouns.size())]);
}

std::vector<std::string> Distinct(Random& random, size_t count, const std::function<std::string(Random&)>& make) {
  std::vector<std::string> values;
  std::set<std::string> seen;
  while (values.size() < count) {
    std::string value = make(random);
    if (seen.insert(value).second) values.push_back(std::move(value));
  }
  return values;
}

std::string Number(Random& random, int digits) {
  uint64_t low = 1;
  for (int i = 1; i < digits; ++i) low *= 10;
  return fmt::format("{}", low + random.Below(9 * low));
}

std::vector<double> RandomDepths(Random& random, size_t count) {
  std::vector<double> depths;
  for (size_t i = 0; i < count; ++i) depths.push_back(static_cast<double>(random.Below(10001)) / 10000);
  std::sort(depths.begin(), depths.end());
  return depths;
}

std::string Assemble(const Draft& draft, const std::vector<std::string>& haystack, int64_t count) {
  std::string text = draft.before;
  size_t next = 0;
  const auto place = [&](int64_t at) {
    while (next < draft.needles.size() && static_cast<double>(at) >= draft.depths[next] * static_cast<double>(count))
      text += draft.needles[next++] + " ";
  };
  for (int64_t i = 0; i < count; ++i) {
    place(i);
    text += haystack.empty() ? kFiller[static_cast<size_t>(i) % kFiller.size()]
                             : haystack[static_cast<size_t>(i) % haystack.size()];
    text += ' ';
  }
  place(count);
  text.pop_back();
  return text + draft.after;
}

// The longest prompt that fits, by halving.
PromptItem Longest(Draft draft, int64_t tokens, const std::function<std::string(int64_t)>& prompt_of,
                   const std::function<int64_t(const PromptItem&)>& count_tokens) {
  PromptItem& item = draft.item;
  const auto fits = [&](int64_t count) {
    item.prompt = prompt_of(count);
    return count_tokens(item) + item.max_new_tokens <= tokens;
  };
  if (!fits(0)) {
    item.prompt = prompt_of(0);
    throw Error(
        fmt::format("{}: the question and {} tokens of answer take {} tokens; {} are allowed. Give longer lengths.",
                    item.task, item.max_new_tokens, count_tokens(item) + item.max_new_tokens, tokens));
  }
  int64_t low = 0, high = 1;
  while (fits(high)) {
    if (high > tokens)
      throw Error(fmt::format("{}: no more filler for {} tokens. Give shorter lengths.", item.task, tokens));
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  item.prompt = prompt_of(low);
  return item;
}

Draft Passkey(Random& random, double depth) {
  Draft draft;
  const std::string key = Number(random, 5);
  draft.before =
      "There is important information hidden inside a lot of irrelevant text. Find it and memorize it. You will be "
      "asked "
      "about it.\n\n";
  draft.needles = {fmt::format("The pass key is {0}. Remember it. {0} is the pass key.", key)};
  draft.depths = depth >= 0 ? std::vector{depth} : RandomDepths(random, 1);
  draft.after = "\n\nWhat is the pass key?";
  draft.item.answer_start = "The pass key is";
  draft.item.answers = {key};
  draft.item.max_new_tokens = 16;
  return draft;
}

// keys: how many there are; values: for each; queries: keys asked for.
Draft Needles(Random& random, size_t keys, size_t values, size_t queries, double depth) {
  Draft draft;
  const std::vector<std::string> names = Distinct(random, keys, Key);
  const std::vector<std::string> numbers = Distinct(random, keys * values, [](Random& r) { return Number(r, 7); });
  for (size_t k = 0; k < keys; ++k) {
    for (size_t v = 0; v < values; ++v)
      draft.needles.push_back(
          fmt::format("One of the special magic numbers for {} is: {}.", names[k], numbers[k * values + v]));
  }
  random.Shuffle(draft.needles);
  draft.depths =
      depth >= 0 ? std::vector<double>(draft.needles.size(), depth) : RandomDepths(random, draft.needles.size());
  std::vector<std::string> asked(names.begin(), names.begin() + static_cast<int64_t>(queries));
  for (size_t i = 0; i < queries * values; ++i) draft.item.answers.push_back(numbers[i]);
  const bool one = draft.item.answers.size() == 1;
  const std::string which = fmt::format("{}", fmt::join(asked, ", "));
  const std::string what = one ? "the special magic number" : "all the special magic numbers";
  draft.before = fmt::format(
      "Some special magic numbers are hidden within the following text. Make sure to memorize them. You will be "
      "quizzed about "
      "them afterwards.\n\n");
  draft.after = fmt::format("\n\nWhat {} {} for {} mentioned in the text above?", one ? "is" : "are", what, which);
  draft.item.answer_start =
      fmt::format("{} for {} mentioned in the text {}", one ? "The special magic number" : "The special magic numbers",
                  which, one ? "is" : "are");
  draft.item.max_new_tokens = one ? 32 : 128;
  return draft;
}

Draft VariableTracking(Random& random) {
  constexpr size_t kHops = 4;
  Draft draft;
  const std::vector<std::string> names = Distinct(random, kHops + 1, [](Random& r) {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + r.Below(26));
    return name;
  });
  const std::string value = Number(random, 5);
  draft.needles.push_back(fmt::format("VAR {} = {}.", names[0], value));
  for (size_t i = 1; i <= kHops; ++i) draft.needles.push_back(fmt::format("VAR {} = VAR {}.", names[i], names[i - 1]));
  draft.depths = RandomDepths(random, draft.needles.size());
  draft.before = "Memorize and track the chain of variable assignments hidden in the following text.\n\n";
  draft.after = fmt::format("\n\nFind all variables that are assigned the value {} in the text above.", value);
  draft.item.answer_start = fmt::format(
      "According to the chain of variable assignments in the text above, {} variables are assigned the value {}, they "
      "are:",
      names.size(), value);
  draft.item.answers = names;
  draft.item.max_new_tokens = 30;
  return draft;
}

std::string NumberedWords(Random& random, const std::vector<std::string>& common, int common_times,
                          const std::vector<std::string>& rare, int rare_times) {
  std::vector<std::string> list;
  for (const std::string& word : common) list.insert(list.end(), static_cast<size_t>(common_times), word);
  for (const std::string& word : rare) list.insert(list.end(), static_cast<size_t>(rare_times), word);
  random.Shuffle(list);
  std::string text;
  for (size_t i = 0; i < list.size(); ++i) text += fmt::format("{}{}. {}", i ? " " : "", i + 1, list[i]);
  return text;
}

PromptItem CommonWords(Random& random, const SyntheticChoice& choice,
                       const std::function<int64_t(const PromptItem&)>& count_tokens) {
  constexpr size_t kCommon = 10;
  constexpr std::string_view kTask =
      "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
      "appear "
      "most often.\n";
  constexpr std::string_view kQuestion = "\nQuestion: What are the 10 most common words in the above list?";
  constexpr std::string_view kAnswer = "Answer: The top 10 words that appear most often in the list are:";
  std::vector<std::string> words;
  for (const char* adjective : kAdjectives) {
    for (const char* noun : kNouns) words.push_back(fmt::format("{}{}", adjective, noun));
  }
  for (const char* first : kNouns) {
    for (const char* second : kNouns) words.push_back(fmt::format("{}{}", first, second));
  }
  random.Shuffle(words);
  auto take = [&words, at = size_t{0}](size_t count) mutable {
    std::vector<std::string> taken(words.begin() + static_cast<int64_t>(at),
                                   words.begin() + static_cast<int64_t>(at + count));
    at += count;
    return taken;
  };
  // One solved example, as in RULER, where there is room for it.
  std::string example;
  if (choice.tokens >= 2048) {
    const std::vector<std::string> common = take(kCommon), rare = take(20);
    example = fmt::format("{}{}{} {}", kTask, NumberedWords(random, common, 6, rare, 1), kQuestion, kAnswer);
    for (size_t i = 0; i < common.size(); ++i) example += fmt::format(" {}. {}", i + 1, common[i]);
    example += "\n\n";
  }
  Draft draft;
  draft.item.task = "cwe";
  draft.item.answer_start = kAnswer;
  draft.item.answers = take(kCommon);
  draft.item.max_new_tokens = 120;
  const uint64_t order = random.Next();
  const std::vector<std::string> rare(words.begin() + 40, words.end());
  const std::vector<std::string> common = draft.item.answers;
  const auto prompt_of = [&](int64_t count) {
    const auto end = rare.begin() + std::min<int64_t>(count, std::ssize(rare));
    Random shuffle(order);
    // RULER's 30 and 3 occurrences; less of them where the list is short, more where it would run out of words.
    const int times = choice.tokens < 4096 ? 10 : 30 * static_cast<int>(1 + choice.tokens / 32768);
    return fmt::format("{}{}{}{}", example, kTask,
                       NumberedWords(shuffle, common, times, {rare.begin(), end}, times / 10), kQuestion);
  };
  const auto count = [&](const PromptItem& item) { return count_tokens(item); };
  return Longest(std::move(draft), choice.tokens, prompt_of, count);
}

}  // namespace

uint64_t Random::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::span<const std::string_view> SyntheticTasks() { return kTasks; }

PromptItem MakeSyntheticItem(const SyntheticChoice& choice, const std::vector<std::string>& haystack,
                             const std::function<int64_t(const PromptItem&)>& count_tokens) {
  // Every item has its own numbers; they do not depend on which other items are asked for.
  Random random(choice.seed * 0x2545f4914f6cdd1d + static_cast<uint64_t>(choice.index) * 0x9e3779b97f4a7c15 +
                static_cast<uint64_t>(choice.tokens));
  PromptItem item;
  if (choice.task == "cwe") {
    item = CommonWords(random, choice, count_tokens);
  } else {
    Draft draft;
    if (choice.task == "needle" || choice.task == "niah_single")
      draft = Needles(random, 1, 1, 1, choice.depth);
    else if (choice.task == "passkey")
      draft = Passkey(random, choice.depth);
    else if (choice.task == "niah_multikey")
      draft = Needles(random, 4, 1, 1, choice.depth);
    else if (choice.task == "niah_multivalue")
      draft = Needles(random, 1, 4, 1, choice.depth);
    else if (choice.task == "niah_multiquery")
      draft = Needles(random, 4, 1, 4, choice.depth);
    else if (choice.task == "vt")
      draft = VariableTracking(random);
    else
      throw Error(fmt::format("no task is called '{}'; possible: {}.", choice.task, fmt::join(kTasks, ", ")));
    draft.item.task = choice.task;
    // Passkeys stand among the same few sentences, as in the original.
    static const std::vector<std::string> kNone;
    const std::vector<std::string>& filler = choice.task == "passkey" ? kNone : haystack;
    item = Longest(
        draft, choice.tokens, [&](int64_t count) { return Assemble(draft, filler, count); }, count_tokens);
  }
  item.index = choice.index;
  item.length = choice.tokens;
  item.depth = choice.depth;
  return item;
}

std::vector<std::string> SplitSentences(std::string_view text) {
  std::vector<std::string> sentences;
  std::string sentence;
  const auto end_sentence = [&] {
    const size_t first = sentence.find_first_not_of(" \t\r");
    if (first != std::string::npos)
      sentences.push_back(sentence.substr(first, sentence.find_last_not_of(" \t\r") - first + 1));
    sentence.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n') {
      end_sentence();
      continue;
    }
    sentence += text[i];
    const bool stop = text[i] == '.' || text[i] == '!' || text[i] == '?';
    if (stop && i + 1 < text.size() && text[i + 1] == ' ') end_sentence();
  }
  end_sentence();
  return sentences;
}

}  // namespace kvrazor::eval

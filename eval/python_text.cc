#include "eval/python_text.h"

#include <algorithm>
#include <array>

#include "unicode.h"  // llama.cpp's tables

namespace kvrazor::eval {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

// Where the ten digits of each script begin (general category Nd, Unicode 14).
constexpr std::array<char32_t, 66> kDigitZeros = {
    0x30,    0x660,   0x6f0,   0x7c0,   0x966,   0x9e6,   0xa66,   0xae6,   0xb66,   0xbe6,   0xc66,
    0xce6,   0xd66,   0xde6,   0xe50,   0xed0,   0xf20,   0x1040,  0x1090,  0x17e0,  0x1810,  0x1946,
    0x19d0,  0x1a80,  0x1a90,  0x1b50,  0x1bb0,  0x1c40,  0x1c50,  0xa620,  0xa8d0,  0xa900,  0xa9d0,
    0xa9f0,  0xaa50,  0xabf0,  0xff10,  0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0,
    0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
    0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0};

// One code point from the front of the bytes; what is no UTF-8 counts as one byte long.
char32_t Decode(std::string_view text, size_t at, size_t& length) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  length = 1;
  if (lead < 0x80) return lead;
  const size_t wanted = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || at + wanted > text.size()) return kReplacement;
  char32_t c = lead & (0x7Fu >> wanted);
  for (size_t i = 1; i < wanted; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return kReplacement;
    c = (c << 6) | (byte(i) & 0x3Fu);
  }
  const bool too_long = (wanted == 3 && c < 0x800) || (wanted == 4 && c < 0x10000);
  if (too_long || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return kReplacement;
  length = wanted;
  return c;
}

void Encode(char32_t c, std::string& out) {
  const auto add = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) return add(c);
  if (c < 0x800) {
    add(0xC0 | (c >> 6));
  } else {
    if (c < 0x10000) {
      add(0xE0 | (c >> 12));
    } else {
      add(0xF0 | (c >> 18));
      add(0x80 | ((c >> 12) & 0x3F));
    }
    add(0x80 | ((c >> 6) & 0x3F));
  }
  add(0x80 | (c & 0x3F));
}

}  // namespace

std::u32string FromUtf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t at = 0, length = 0; at < text.size(); at += length) out += Decode(text, at, length);
  return out;
}

std::string ToUtf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) Encode(c, out);
  return out;
}

std::u32string Lower(std::u32string_view text) {
  std::u32string out;
  for (const char32_t c : text) {
    if (c == 0x130) {  // the one letter whose lower case is two code points
      out += U"i\u0307";
    } else {
      out += static_cast<char32_t>(unicode_tolower(c));
    }
  }
  return out;
}

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsWordCharacter(char32_t c) {
  const unicode_cpt_flags flags = unicode_cpt_flags_from_cpt(c);
  return c == '_' || flags.is_letter || flags.is_number;
}

bool IsDecimalDigit(char32_t c) {
  const auto above = std::upper_bound(kDigitZeros.begin(), kDigitZeros.end(), c);
  return above != kDigitZeros.begin() && c - *(above - 1) < 10;
}

bool IsAsciiPunctuation(char32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

std::vector<std::u32string> SplitWords(std::u32string_view text) {
  std::vector<std::u32string> words;
  for (size_t at = 0; at < text.size();) {
    if (IsSpace(text[at])) {
      ++at;
      continue;
    }
    const size_t begin = at;
    while (at < text.size() && !IsSpace(text[at])) ++at;
    words.emplace_back(text.substr(begin, at - begin));
  }
  return words;
}

std::vector<std::u32string> Split(std::u32string_view text, char32_t separator) {
  std::vector<std::u32string> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end == text.npos ? text.npos : end - begin));
    if (end == text.npos) return parts;
    begin = end + 1;
  }
}

std::u32string Join(const std::vector<std::u32string>& parts, std::u32string_view between) {
  std::u32string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i) out += between;
    out += parts[i];
  }
  return out;
}

std::u32string_view WithoutLeadingNewlines(std::u32string_view text) {
  const size_t first = text.find_first_not_of(U'\n');
  return first == text.npos ? std::u32string_view() : text.substr(first);
}

std::vector<std::u32string> FindNumbers(std::u32string_view text) {
  std::vector<std::u32string> numbers;
  for (size_t at = 0; at < text.size();) {
    if (!IsDecimalDigit(text[at])) {
      ++at;
      continue;
    }
    const size_t begin = at;
    while (at < text.size() && IsDecimalDigit(text[at])) ++at;
    numbers.emplace_back(text.substr(begin, at - begin));
  }
  return numbers;
}

}  // namespace kvrazor::eval

// Text as Python's str sees it, where published metrics are defined by Python code: code points, Unicode white space, lower case.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvrazor::eval {

/// UTF-8 from and to code points. Bytes that are not UTF-8 become U+FFFD.
std::u32string FromUtf8(std::string_view text);
std::string ToUtf8(std::u32string_view text);

/// str.lower(), except that a final sigma is not told from an inner one.
std::u32string Lower(std::u32string_view text);
/// str.split(): words between runs of white space, none empty.
std::vector<std::u32string> SplitWords(std::u32string_view text);
/// str.split(separator): also empty parts.
std::vector<std::u32string> Split(std::u32string_view text, char32_t separator);
std::u32string Join(const std::vector<std::u32string>& parts, std::u32string_view between);
/// str.lstrip("\n")
std::u32string_view WithoutLeadingNewlines(std::u32string_view text);

bool IsSpace(char32_t c);             ///< str.isspace
bool IsWordCharacter(char32_t c);     ///< \w of the module re
bool IsDecimalDigit(char32_t c);      ///< \d of the module re
bool IsAsciiPunctuation(char32_t c);  ///< string.punctuation
/// re.findall(r"\d+", text)
std::vector<std::u32string> FindNumbers(std::u32string_view text);

}  // namespace kvrazor::eval

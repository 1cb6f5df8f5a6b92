// Chinese text as words, by jieba: the Python package that LongBench's metrics use, run in a Python process.
#pragma once

#include <string>
#include <vector>

namespace kvrazor::eval {

inline constexpr char kJiebaVersion[] = "0.42.1";

/// list(jieba.cut(text, cut_all=False)) for each text. The interpreter is $KVRAZOR_PYTHON, or python3 from $PATH; it needs the
/// package jieba of kJiebaVersion (Debian: python3-jieba). Throws Error that says how to get it.
std::vector<std::vector<std::string>> JiebaWords(const std::vector<std::string>& texts);

}  // namespace kvrazor::eval

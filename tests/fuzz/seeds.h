// Fuzz targets are libFuzzer's (LLVMFuzzerTestOneInput); run_seeds.cc drives them without it, from the inputs named here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace kvrazor::fuzz {

/// Inputs that reach deep; the others are made from them.
std::vector<std::string> Seeds();

/// Ends the process with the sentence, as a fuzz target must: an exception could be caught by what is tested.
[[noreturn]] void Crash(const std::string& what);

}  // namespace kvrazor::fuzz

// Most bytes that the plug-in's cache holds while SmolLM2's shape (30 layers, 3 kv heads of 64) is filled to the last token:
// ggml_memory_test measures them, memory_plan_test compares `kvrazor plan` with them.
#pragma once

#include <cstdint>

namespace kvrazor {

struct MeasuredBytes {
  const char* recipe;
  int64_t context;
  int64_t bytes;               // read in batches of 512, the last one token by token
  double smaller_at_least;     // than 16 bits
  double in_batches_at_least;  // when the last batch is read as the others
};
inline constexpr MeasuredBytes kMeasuredBytes[] = {
    {"f16", 8192, 189'045'216, 0.998, 0.998},
    {"razor-2", 8192, 32'390'016, 5.8, 6.1},
    {"razor-2", 32768, 112'433'376, 6.7, 6.8},
    {"oscar", 8192, 40'882'656, 4.6, 4.8},
    // Two pages in 16 bits in every layer: with these 5.091 is the limit of 3.04 stored bits, before any table.
    {"oscar", 32768, 148'574'736, 5.07, 5.1},
};

}  // namespace kvrazor

// A sealed page inside a saved state. llama.cpp saves caches as 16-bit rows; a page that it saves as a whole is written
// as one carrier that fills the place of its 128 rows, so that loading it gives the same sealed bytes and nothing is
// quantized twice.
//
//   header (magic, version, layout hash, layer, side, checksum, exact tokens) | sealed bytes | exact rows |
//   outlier tokens, if the recipe traces them | part of the second moment | 0 ...
//
// Razor keys: the second moment of the queries travels in the room that is left, a part in each page, so that a
// restored cache goes on sealing as the saved one would have. The byte order is the machine's, as in llama.cpp's own
// state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "integrations/ggml/cache_side.h"

namespace kvrazor::ggml {

/// Parts of a layer's second moment that have arrived in carriers.
struct MomentParts {
  int64_t count = 0;  ///< queries in it; parts of another count or step belong to another state
  int64_t steps = 0;
  std::vector<std::byte> bytes;  ///< as SecondMoment::Save writes them
  std::vector<bool> arrived;     ///< [bytes]
  int64_t missing = 0;

  int64_t held_bytes() const { return static_cast<int64_t>(bytes.capacity() + arrived.capacity() / 8); }
};

/// What is written into a carrier beside the page, and read from it.
struct CarrierMoment {
  const SecondMoment* moment = nullptr;  ///< nullptr: none
  int64_t steps = 0;                     ///< CacheLayer::decode_steps
};

bool IsCarrier(std::span<const std::byte> row);

/// Whether page p is sealed and its bytes fit into the place of its rows.
bool CanCarry(const CacheSide& side, int64_t p);

/// block  128 rows; CanCarry(side, p).
void WriteCarrier(const CacheSide& side, int64_t p, const CarrierMoment& moment, std::span<std::byte> block);

/// A checked carrier; pointers into the block.
struct CarrierPage {
  const std::byte* sealed = nullptr;
  const std::byte* exact_rows = nullptr;  ///< f16, unaligned
  TokenMask sinks;
  ChosenTokens chosen;

  TokenMask exact() const {
    TokenMask all = sinks;
    all |= chosen.tokens;
    return all;
  }
};
/// "" or why the block is refused (then neither result is touched). block: 128 rows.
std::string ReadCarrier(const CacheSide& side, std::span<const std::byte> block, CarrierPage& page, MomentParts& parts);

/// Makes `moment` what was saved if all parts have arrived.
bool AssembleMoment(const MomentParts& parts, SecondMoment& moment);

}  // namespace kvrazor::ggml

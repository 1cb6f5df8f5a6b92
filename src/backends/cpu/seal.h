// Backend::Seal on the CPU, one function a codec. Each file opens with the exact formulas: reference/ holds their float64 twins.
#pragma once

#include <cstddef>

#include "src/ops/backend.h"

namespace kvrazor::cpu {

/// Backend::Seal: picks the codec. Throws Error for a layout that has no pages to seal or a moment of another shape.
void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
          std::byte* page);

void SealAffine(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page);
void SealCodebook(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page);
void SealRazorKey(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
                  std::byte* page);
void SealRazorValue(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page);

}  // namespace kvrazor::cpu

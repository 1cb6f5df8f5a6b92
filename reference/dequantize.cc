#include "reference/dequantize.h"

#include <cmath>

#include "reference/codes.h"
#include "reference/half.h"
#include "reference/rotate.h"
#include "reference/seal_codebook.h"

namespace kvrazor::reference {
namespace {

Sum ReadAffine(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  const int size = layout.recipe.group_size;
  const int64_t group = layout.recipe.axis == Axis::kPerChannel
                            ? int64_t{token / size} * layout.shape.head_dim + channel
                            : int64_t{channel / size} * kPageTokens + token;
  const double scale = DecodeF16(GetU16(layout, page, head, layout.scale_at, group));
  const double offset = DecodeF16(GetU16(layout, page, head, layout.offset_at, group));
  const double norm = layout.token_scale_at >= 0 ? DecodeF16(GetTokenScale(layout, page, token)) : 1.0;
  Sum x;
  x.Add(norm * scale * GetCode(layout, page, head, token, channel));
  x.Add(norm * offset);
  return x;
}

Sum ReadRazorKey(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  const int mean = static_cast<int16_t>(GetU16(layout, page, head, layout.mean_at, channel));
  const double base = GetHeadScalar(layout, page, head, 1);
  const double scale = DecodeE3M5(GetU8(layout, page, head, layout.scale_at, token), base);
  const double middle_code = 0.5 * ((1 << layout.recipe.bits) - 1);
  const double factor =
      layout.recipe.rank_one_mean ? DecodeF16(GetU16(layout, page, head, layout.mean_factor_at, token)) : 1.0;
  Sum x;
  x.Add(factor * mean * static_cast<double>(GetHeadScalar(layout, page, head, 0)));
  x.Add(scale * (GetCode(layout, page, head, token, channel) - middle_code));
  return x;
}

Sum ReadRazorValue(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  const double norm = DecodeE5M3(GetU8(layout, page, head, layout.norm_at, token));
  const int tokens = layout.recipe.group_size > 0 ? layout.recipe.group_size : kPageTokens;
  const int64_t index = int64_t{token / tokens} * layout.shape.head_dim + channel;
  const double scale = DecodeE5M3(GetU8(layout, page, head, layout.scale_at, index));
  const int centre = static_cast<int8_t>(GetU8(layout, page, head, layout.centre_at, index));
  const double middle_code = 0.5 * ((1 << layout.recipe.bits) - 1);
  Sum x;
  x.Add(norm * scale * centre / 8);
  x.Add(norm * scale * GetCode(layout, page, head, token, channel));
  x.Add(-norm * scale * middle_code);
  return x;
}

Sum ReadCodebook(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  static const GridLevels grids[] = {CodebookLevels(2), CodebookLevels(3), CodebookLevels(4)};
  const GridLevels& grid = grids[layout.recipe.bits - 2];
  const double norm = DecodeF16(GetU16(layout, page, head, layout.norm_at, token));
  const int code = GetCode(layout, page, head, token, channel);
  Sum x;  // kernels add up steps and take the middle off
  x.Add(norm * (grid.levels[static_cast<size_t>(code)] + grid.levels.back()));
  x.Add(-norm * grid.levels.back());
  return x;
}

Sum ReadStored(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  switch (layout.recipe.codec) {
    case Codec::kF16: break;  // never sealed
    case Codec::kAffine: return ReadAffine(layout, page, head, token, channel);
    case Codec::kCodebook: return ReadCodebook(layout, page, head, token, channel);
    case Codec::kRazorKey: return ReadRazorKey(layout, page, head, token, channel);
    case Codec::kRazorValue: return ReadRazorValue(layout, page, head, token, channel);
  }
  return {};
}

std::vector<Sum> ReadRow(const f16_bits* row, int head_dim) {
  std::vector<Sum> values(static_cast<size_t>(head_dim));
  for (int c = 0; c < head_dim; ++c) values[c].Add(DecodeF16(row[c]));
  return values;
}

}  // namespace

std::vector<Sum> DequantizeHead(const PageLayout& layout, const PageSide& page, int token, int head) {
  const int dim = layout.shape.head_dim;
  if (!page.sealed) return ReadRow(page.rows + token * layout.row_values() + int64_t{head} * dim, dim);
  if (page.exact.Test(token)) {
    int64_t index = 0;
    for (int t = 0; t < token; ++t) index += page.exact.Test(t);
    return ReadRow(page.exact_rows + index * layout.row_values() + int64_t{head} * dim, dim);
  }
  std::vector<Sum> values(static_cast<size_t>(dim));
  for (int c = 0; c < dim; ++c) values[c] = ReadStored(layout, page.sealed, head, token, c);
  if (!layout.recipe.rotate) return values;

  std::vector<double> rotated;
  double magnitude = 0;
  for (const Sum& x : values) {
    rotated.push_back(x.value);
    magnitude += x.magnitude / std::sqrt(static_cast<double>(dim));
  }
  RotateHead(rotated.data(), dim);
  for (int c = 0; c < dim; ++c) values[c] = {rotated[c], magnitude};
  return values;
}

}  // namespace kvrazor::reference

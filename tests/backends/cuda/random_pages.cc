#include "tests/backends/cuda/random_pages.h"

#include <bit>
#include <cmath>

#include "reference/backend.h"
#include "reference/dequantize.h"
#include "src/core/half.h"

namespace kvrazor::cuda {
namespace {

constexpr int kSinkCapacity = 16;

}  // namespace

f16_bits Bf16FromF32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<f16_bits>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

double ValueOf(f16_bits x, bool bf16) {
  return bf16 ? std::bit_cast<float>(static_cast<uint32_t>(x) << 16) : F32FromF16(x);
}

RandomPages::RandomPages(const std::string& recipe, HeadShape heads, float key_size, int compute_major, uint32_t seed)
    : recipe_(ParseRecipe(recipe)), random_(seed), heads_(heads), key_size_(key_size) {
  format_ = MakePackedFormat(
      {MakePageLayout(recipe_.k, Side::kKey, heads), MakePageLayout(recipe_.v, Side::kValue, heads)}, compute_major);
  for (int i = 0; i < kDistinctPages; ++i) AddPackedPage();
  for (int i = 0; i < kDistinctPages; ++i) AddRowPage(kPageTokens);
}

std::vector<f16_bits> RandomPages::RandomRows(int num_tokens, float size, float offset) {
  std::normal_distribution<float> normal;
  std::vector<f16_bits> rows(static_cast<size_t>(num_tokens) * heads_.num_kv_heads * heads_.head_dim);
  size_t i = 0;
  for (int t = 0; t < num_tokens; ++t) {
    for (int h = 0; h < heads_.num_kv_heads; ++h) {
      const float token_size =
          size * std::exp(0.5f * normal(random_));  // norms of tokens differ by an order of magnitude
      for (int c = 0; c < heads_.head_dim; ++c)
        rows[i++] = F16FromF32(token_size * normal(random_) + offset * static_cast<float>(c % 5 - 2));
    }
  }
  return rows;
}

void RandomPages::AddPackedPage() {
  const auto read = [&](const PageLayout& layout, const std::vector<f16_bits>& rows, std::vector<std::byte>& page,
                        std::vector<double>& values) {
    page.resize(static_cast<size_t>(layout.page_bytes));
    ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
    PageSide side;
    side.sealed = page.data();
    for (int t = 0; t < kPageTokens; ++t) {
      for (int h = 0; h < heads_.num_kv_heads; ++h) {
        for (const auto& x : reference::DequantizeHead(layout, side, t, h)) values.push_back(x.value);
      }
    }
  };
  Values values;
  std::vector<std::byte> k, v;
  read(format_.layer.k, RandomRows(kPageTokens, key_size_, 1), k, values.k);
  read(format_.layer.v, RandomRows(kPageTokens, 1, 0.2f), v, values.v);
  packed_values_.push_back(std::move(values));
  std::vector<std::byte> packed(static_cast<size_t>(format_.page_bytes()));
  PackPage(format_, k.data(), v.data(), packed.data());
  packed_pages_.insert(packed_pages_.end(), packed.begin(), packed.end());
}

void RandomPages::AddSinks() {
  const auto k = RandomRows(recipe_.sink_tokens, key_size_, 1);
  const auto v = RandomRows(recipe_.sink_tokens, 0.3f, 0);
  std::vector<std::byte> packed(static_cast<size_t>(format_.sink_bytes()),
                                std::byte{0x7e});  // NaN (0x7e7e) behind the sinks
  PackRows(format_, kSinkCapacity, recipe_.sink_tokens, k.data(), v.data(), packed.data());
  sink_rows_.insert(sink_rows_.end(), packed.begin(), packed.end());
  Values values;
  for (const f16_bits x : k) values.k.push_back(F32FromF16(x));
  for (const f16_bits x : v) values.v.push_back(F32FromF16(x));
  sink_values_.push_back(std::move(values));
}

int RandomPages::AddRowPage(int num_tokens) {
  const auto k = RandomRows(num_tokens, key_size_, 1);
  const auto v = RandomRows(num_tokens, 1, 0.2f);
  std::vector<std::byte> packed(static_cast<size_t>(format_.row_page_bytes()));
  for (size_t i = 0; i < packed.size(); i += 2) {
    packed[i] = std::byte{kNaN & 0xff};
    packed[i + 1] = std::byte{kNaN >> 8};
  }
  PackRows(format_, kPageTokens, num_tokens, k.data(), v.data(), packed.data());
  row_pages_.insert(row_pages_.end(), packed.begin(), packed.end());
  Values values;
  for (const f16_bits x : k) values.k.push_back(F32FromF16(x));
  for (const f16_bits x : v) values.v.push_back(F32FromF16(x));
  row_values_.push_back(std::move(values));
  return static_cast<int>(row_values_.size()) - 1;
}

}  // namespace kvrazor::cuda

// Where a code lies in a sealed page, and the rows that a page is sealed from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvrazor/layout.h"
#include "src/ops/page_set.h"

namespace kvrazor::reference {

/// The code of one value; `page` starts at the page, not at the head.
int GetCode(const PageLayout& layout, const std::byte* page, int head, int token, int channel);
void SetCode(const PageLayout& layout, std::byte* page, int head, int token, int channel, int code);

/// Parameters of a head by index from `at`, an offset of PageLayout.
uint16_t GetU16(const PageLayout& layout, const std::byte* page, int head, int64_t at, int64_t index);
void SetU16(const PageLayout& layout, std::byte* page, int head, int64_t at, int64_t index, uint16_t value);
uint8_t GetU8(const PageLayout& layout, const std::byte* page, int head, int64_t at, int64_t index);
void SetU8(const PageLayout& layout, std::byte* page, int head, int64_t at, int64_t index, uint8_t value);

/// token_scale of the page, f16 bits.
uint16_t GetTokenScale(const PageLayout& layout, const std::byte* page, int token);
void SetTokenScale(const PageLayout& layout, std::byte* page, int token, uint16_t value);

/// The two f32 scalars of a head: which = 0 mean_scale, 1 token_scale_base.
float GetHeadScalar(const PageLayout& layout, const std::byte* page, int head, int which);
void SetHeadScalar(const PageLayout& layout, std::byte* page, int head, int which, float value);

/// A page as the codecs see it: [128][num_kv_heads][head_dim], rotated if the recipe says so, values that are not
/// finite replaced by 0 beforehand.
class Rows {
 public:
  Rows(const PageLayout& layout, const f16_bits* rows);
  double operator()(int token, int head, int channel) const { return values_[Index(token, head, channel)]; }
  /// The row of one token and head.
  std::vector<double> Row(int token, int head) const;

 private:
  size_t Index(int token, int head, int channel) const {
    return (static_cast<size_t>(token) * shape_.num_kv_heads + head) * shape_.head_dim + channel;
  }
  HeadShape shape_;
  std::vector<double> values_;
};

}  // namespace kvrazor::reference

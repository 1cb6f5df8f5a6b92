// Pages of a cache with random contents: as the kernels read them, and as read back in float64.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kvrazor/recipe.h"
#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

inline constexpr int kDistinctPages = 5;  // tables point to these in any order; sealing is slow in the reference
inline constexpr f16_bits kNaN = 0x7e00;
inline constexpr f16_bits kMinusInfinity = 0xfc00;

f16_bits Bf16FromF32(float x);
/// Of an f16, or with `bf16` of a bf16.
double ValueOf(f16_bits x, bool bf16);

class RandomPages {
 protected:
  /// kDistinctPages packed pages and as many whole row pages.
  ///   key_size  standard deviation of the keys' values
  RandomPages(const std::string& recipe, HeadShape heads, float key_size, int compute_major, uint32_t seed);
  /// Sinks of one more sequence, NaN behind them.
  void AddSinks();
  /// A row page of so many tokens, NaN behind them; its number.
  int AddRowPage(int num_tokens);
  /// Of a token and kv head in Values.
  int64_t Row(int token, int head) const { return (int64_t{token} * heads_.num_kv_heads + head) * heads_.head_dim; }

  /// Rows in float64: [tokens][num_kv_heads][head_dim].
  struct Values {
    std::vector<double> k, v;
  };
  Recipe recipe_;
  PackedFormat format_;
  std::mt19937 random_;
  std::vector<std::byte> packed_pages_, row_pages_, sink_rows_;
  std::vector<Values> packed_values_, row_values_, sink_values_;

 private:
  std::vector<f16_bits> RandomRows(int num_tokens, float size, float offset);
  void AddPackedPage();

  HeadShape heads_;
  float key_size_;
};

}  // namespace kvrazor::cuda

// M += sum q q^T over sampled queries, in the rotated basis.
//
//   gather  up to kBatchRows rows of one kv head's query heads, rotated, [rows][D] (L1)
//   update  their sum S in tiles of 4 rows x 2 vectors: 8 accumulators in registers over all gathered rows, 4 broadcasts and
//           2 loads for 8 multiply-adds; S is read and written once a batch. Tiles above the diagonal are left out
//   fold    S into M as it is kept: one triangle of 16-bit correlations (src/ops/second_moment.h)
#include "src/backends/cpu/second_moment.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <string>

#include "kvrazor/error.h"
#include "src/backends/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/second_moment.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kBatchRows = 64;
constexpr float kLargestSquare = 0x1p100f;

/// m [n][n] += sum over rows [count][n], below and on the diagonal (and a little above it)
HWY_INLINE void AddRows(const float* HWY_RESTRICT rows, size_t count, size_t n, float* HWY_RESTRICT m) {
  const TagF32 d;
  const size_t lanes = hn::Lanes(d);
  for (size_t j = 0; j < n; j += 2 * lanes) {
    for (size_t i = j / 4 * 4; i < n; i += 4) {
      float* HWY_RESTRICT at = m + i * n + j;
      auto a0 = hn::LoadU(d, at), a1 = hn::LoadU(d, at + n), a2 = hn::LoadU(d, at + 2 * n),
           a3 = hn::LoadU(d, at + 3 * n);
      auto b0 = hn::LoadU(d, at + lanes), b1 = hn::LoadU(d, at + n + lanes), b2 = hn::LoadU(d, at + 2 * n + lanes),
           b3 = hn::LoadU(d, at + 3 * n + lanes);
      for (size_t r = 0; r < count; ++r) {
        const float* HWY_RESTRICT row = rows + r * n;
        const auto va = hn::Load(d, row + j);
        const auto vb = hn::Load(d, row + j + lanes);
        const auto x0 = hn::Set(d, row[i]);
        const auto x1 = hn::Set(d, row[i + 1]);
        const auto x2 = hn::Set(d, row[i + 2]);
        const auto x3 = hn::Set(d, row[i + 3]);
        a0 = hn::MulAdd(x0, va, a0);
        a1 = hn::MulAdd(x1, va, a1);
        a2 = hn::MulAdd(x2, va, a2);
        a3 = hn::MulAdd(x3, va, a3);
        b0 = hn::MulAdd(x0, vb, b0);
        b1 = hn::MulAdd(x1, vb, b1);
        b2 = hn::MulAdd(x2, vb, b2);
        b3 = hn::MulAdd(x3, vb, b3);
      }
      hn::StoreU(a0, d, at);
      hn::StoreU(a1, d, at + n);
      hn::StoreU(a2, d, at + 2 * n);
      hn::StoreU(a3, d, at + 3 * n);
      hn::StoreU(b0, d, at + lanes);
      hn::StoreU(b1, d, at + n + lanes);
      hn::StoreU(b2, d, at + 2 * n + lanes);
      hn::StoreU(b3, d, at + 3 * n + lanes);
    }
  }
}

/// Rotates one query into `to`; false if it may not be added.
HWY_INLINE bool LoadQuery(const float* HWY_RESTRICT q, size_t n, float* HWY_RESTRICT to) {
  const TagF32 d;
  const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(n)));
  auto sum = hn::Zero(d);
  HadamardRow(to, n, [&](size_t i) HWY_ATTR {
    const auto x = hn::LoadU(d, q + i);
    sum = hn::MulAdd(x, x, sum);
    return hn::Mul(x, scale);
  });
  return hn::GetLane(hn::SumOfLanes(d, sum)) < kLargestSquare;  // false for NaN
}

/// M += S, with s [n][n], of which the lower triangle counts. With M' = M + S and c the codes of the correlations,
///   c'_ij = c_ij keep_i keep_j + 32767 (s_ij inverse_i) inverse_j,   keep = sqrt(M_cc / M'_cc),   inverse = 1 / sqrt(M'_cc)
HWY_INLINE void Fold(const float* HWY_RESTRICT s, size_t n, float* HWY_RESTRICT keep, float* HWY_RESTRICT inverse,
                     float* HWY_RESTRICT variances, int16_t* HWY_RESTRICT codes) {
  const TagF32 d;
  const hn::Rebind<int32_t, TagF32> d32;
  const hn::Rebind<int16_t, TagF32> d16;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; ++i) {
    const float old = variances[i];
    const float now = old + s[i * n + i];
    const bool any = now >= FLT_MIN;
    keep[i] = any ? std::sqrt(old / now) : 0.0f;
    inverse[i] = any ? 1.0f / std::sqrt(now) : 0.0f;
    variances[i] = now;
  }
  const auto most = hn::Set(d, SecondMoment::kOne);
  for (size_t i = 1; i < n; ++i) {
    const auto keep_i = hn::Set(d, keep[i]);
    const auto inverse_i = hn::Set(d, inverse[i] * SecondMoment::kOne);
    const auto moved = [&](const int16_t* from, size_t j) HWY_ATTR {
      const auto c = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d16, from)));
      const auto added = hn::Mul(hn::Mul(hn::Load(d, s + i * n + j), inverse_i), hn::Load(d, inverse + j));
      const auto x = hn::MulAdd(hn::Mul(c, keep_i), hn::Load(d, keep + j), added);
      return hn::DemoteTo(d16, hn::NearestInt(hn::Max(hn::Neg(most), hn::Min(x, most))));
    };
    size_t j = 0;
    for (; j + lanes <= i; j += lanes) hn::StoreU(moved(codes + j, j), d16, codes + j);
    if (j < i) {  // the next row begins inside the vector
      HWY_ALIGN int16_t part[HWY_MAX_BYTES / sizeof(float)] = {};
      std::memcpy(part, codes + j, (i - j) * sizeof(int16_t));
      hn::StoreU(moved(part, j), d16, part);
      std::memcpy(codes + j, part, (i - j) * sizeof(int16_t));
    }
    codes += i;
  }
}

/// Query heads [h * ratio, (h + 1) * ratio) belong to kv head h. Returns the most rows that a kv head got.
int64_t AddQueryRows(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) {
  const size_t n = static_cast<size_t>(moment.shape().head_dim);
  const int ratio = num_qo_heads / moment.shape().num_kv_heads;
  Scratch scratch(n);
  float* rows = scratch.Take<float>(kBatchRows * n);
  float* sum = scratch.Take<float>(n * n);
  float* keep = scratch.Take<float>(n);
  float* inverse = scratch.Take<float>(n);
  int64_t most = 0;
  for (int h = 0; h < moment.shape().num_kv_heads; ++h) {
    int64_t added = 0;
    size_t count = 0;
    std::fill_n(sum, n * n, 0.0f);
    for (int t = 0; t < qo_len; t += stride) {
      for (int i = 0; i < ratio; ++i) {
        if (!LoadQuery(q.data + t * q.token_stride + (int64_t{h} * ratio + i) * q.head_stride, n, rows + count * n))
          continue;
        ++added;
        if (++count == kBatchRows) {
          AddRows(rows, count, n, sum);
          count = 0;
        }
      }
    }
    if (count > 0) AddRows(rows, count, n, sum);
    if (added > 0) Fold(sum, n, keep, inverse, moment.variances(h), moment.correlations(h));
    most = std::max(most, added);
  }
  return most;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(AddQueryRows);

void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) {
  const HeadShape shape = moment.shape();
  const bool power_of_two = shape.head_dim >= 32 && (shape.head_dim & (shape.head_dim - 1)) == 0;
  if (shape.num_kv_heads < 1 || !power_of_two) {
    throw Error("second moment: made for " + std::to_string(shape.num_kv_heads) + " kv heads of head_dim " +
                std::to_string(shape.head_dim) + "; possible are 1 and more heads of a power of two from 32 up.");
  }
  if (num_qo_heads < 1 || num_qo_heads % shape.num_kv_heads != 0) {
    throw Error("second moment: num_qo_heads=" + std::to_string(num_qo_heads) +
                "; possible are multiples of num_kv_heads=" + std::to_string(shape.num_kv_heads) + ".");
  }
  if (qo_len < 0 || stride < 1) {
    throw Error("second moment: qo_len=" + std::to_string(qo_len) + ", stride=" + std::to_string(stride) +
                "; possible are qo_len >= 0 and stride >= 1.");
  }
  moment.AddCount(HWY_DYNAMIC_DISPATCH(AddQueryRows)(moment, q, qo_len, num_qo_heads, stride));
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE

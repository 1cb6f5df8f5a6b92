// Online softmax in base 2 over the logits of one query row and one page.
//
//   logit2 = log2(e) * (softcap(softmax_scale * q.k) + slope * mask);   top: largest so far;   p = 2^(logit2 - top)
//
// Hidden keys get p = 0 by selection, so nothing that their logits hold (infinity, NaN) can spread.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_SOFTMAX_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_SOFTMAX_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_SOFTMAX_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include "hwy/highway.h"
#include "src/backends/cpu/operand-inl.h"
#include "src/ops/attend.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kNoLogit = -std::numeric_limits<float>::infinity();
inline constexpr float kLog2E = std::numbers::log2e_v<float>;

/// 2^x for x <= 0, 0 below -126. Relative error < 2e-7: minimax polynomial of degree 5 on [-1/2, 1/2] (7.5e-8) and rounding.
HWY_INLINE VecF32 Exp2(VecF32 x) {
  const TagF32 d;
  const DotI32 di;
  const auto magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: the integer part lands in the low bits
  const auto shifted = hn::Add(x, magic);
  const auto f = hn::Sub(x, hn::Sub(shifted, magic));
  auto y = hn::Set(d, 0.0013276471979478776f);
  y = hn::MulAdd(y, f, hn::Set(d, 0.00967554133421605f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.05550713273542586f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.24022119723848476f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.6931469670647331f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0000000716546822f));
  const auto scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.0f)), scaled);
}

/// tanh(x) = 1 - 2 / (1 + e^2x), by the e^-2|x| that cannot overflow.
HWY_INLINE VecF32 Tanh(VecF32 x) {
  const TagF32 d;
  const auto one = hn::Set(d, 1.0f);
  const auto e = Exp2(hn::Mul(hn::Abs(x), hn::Set(d, -2.0f * kLog2E)));
  return hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
}

/// What a row sees of a page.
enum TokenState : uint8_t {
  kHidden,  ///< nothing
  kOpen,    ///< every token of the page, no mask value to add
  kMixed,   ///< see RowMask
};

struct RowMask {
  const f16_bits* values = nullptr;  // [num_tokens] or nullptr
  int num_visible = 0;               // tokens from here on are hidden
};

/// Tokens of the page that query token i may see, and the mask values to add.
HWY_INLINE RowMask MaskOfRow(const AttendArgs& args, const AttendPage& page, int i) {
  if (args.mask) return {args.mask + i * args.mask_stride + page.first_key, page.num_tokens};
  const int64_t visible = args.causal_base + i + 1 - page.first_key;
  return {nullptr, static_cast<int>(visible < 0 ? 0 : visible < page.num_tokens ? visible : page.num_tokens)};
}

HWY_INLINE TokenState StateOfRow(const RowMask& mask, int num_tokens) {
  if (!mask.values) return mask.num_visible == 0 ? kHidden : mask.num_visible == num_tokens ? kOpen : kMixed;
  const hn::ScalableTag<uint16_t> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto any = hn::Zero(d);      // bits that are set somewhere, the sign aside: 0 and -0 add nothing
  auto differs = hn::Zero(d);  // from minus infinity
  const auto hidden = hn::Set(d, 0xfc00);
  int t = 0;
  for (; t + lanes <= num_tokens; t += lanes) {
    const auto bits = hn::LoadU(d, mask.values + t);
    any = hn::Or(any, hn::And(bits, hn::Set(d, 0x7fff)));
    differs = hn::Or(differs, hn::Xor(bits, hidden));
  }
  uint16_t any_bits = hn::AllTrue(d, hn::Eq(any, hn::Zero(d))) ? 0 : 1;
  uint16_t differs_bits = hn::AllTrue(d, hn::Eq(differs, hn::Zero(d))) ? 0 : 1;
  for (; t < num_tokens; ++t) {
    any_bits |= mask.values[t] & 0x7fff;
    differs_bits |= mask.values[t] ^ 0xfc00;
  }
  return any_bits == 0 ? kOpen : differs_bits == 0 ? kHidden : kMixed;
}

/// The parts of the softmax that do not change between pages.
struct LogitRule {
  float scale_log2 = 0;    // softmax_scale * log2(e), without a softcap
  float cap_in = 0;        // softmax_scale / softcap, or 0
  float cap_out_log2 = 0;  // softcap * log2(e)
};

HWY_INLINE LogitRule MakeLogitRule(const AttendArgs& args) {
  LogitRule rule;
  rule.scale_log2 = args.softmax_scale * kLog2E;
  if (args.logit_softcap > 0) {
    rule.cap_in = args.softmax_scale / args.logit_softcap;
    rule.cap_out_log2 = args.logit_softcap * kLog2E;
  }
  return rule;
}

HWY_INLINE VecF32 ApplyRule(const LogitRule& rule, VecF32 x) {
  const TagF32 d;
  if (HWY_LIKELY(rule.cap_in == 0)) return hn::Mul(x, hn::Set(d, rule.scale_log2));
  return hn::Mul(Tanh(hn::Mul(x, hn::Set(d, rule.cap_in))), hn::Set(d, rule.cap_out_log2));
}

/// Raw products q.k become logits in base 2, hidden ones -inf, all 128 lanes. Returns the largest.
///   slope_log2  factor on mask values
HWY_INLINE float FinishLogits(float* HWY_RESTRICT x, int num_tokens, const LogitRule& rule, bool mixed,
                              const RowMask& mask, float slope_log2) {
  const TagF32 d;
  const DotI32 di;
  const auto none = hn::Set(d, kNoLogit);
  const auto lowest = hn::Set(d, -65505.0f);  // below f16's numbers: some targets convert its infinities to +-65536
  auto top = none;
  if (HWY_LIKELY(!mixed && num_tokens == kPageTokens)) {
    for (int t = 0; t < kPageTokens; t += kLanes) {
      const auto y = ApplyRule(rule, hn::Load(d, x + t));
      hn::Store(y, d, x + t);
      top = hn::Max(top, y);
    }
    return Largest(top);
  }
  const int limit = mixed ? mask.num_visible : num_tokens;
  HWY_ALIGN f16_bits tail[16];
  for (int t = 0; t < kPageTokens; t += kLanes) {
    if (t >= limit) {
      hn::Store(none, d, x + t);
      continue;
    }
    auto y = ApplyRule(rule, hn::Load(d, x + t));
    auto seen = hn::RebindMask(d, hn::Lt(hn::Iota(di, t), hn::Set(di, limit)));
    if (mixed && mask.values) {
      const f16_bits* values = mask.values + t;
      if (t + kLanes > limit) {
        for (int i = 0; i < kLanes; ++i) tail[i] = t + i < limit ? values[i] : 0;
        values = tail;
      }
      const auto m = LoadF16(values);
      seen = hn::And(seen, hn::Gt(m, lowest));
      y = hn::MulAdd(m, hn::Set(d, slope_log2), y);
    }
    y = hn::IfThenElse(seen, y, none);
    hn::Store(y, d, x + t);
    top = hn::Max(top, y);
  }
  return Largest(top);
}

/// x = 2^(x - top) for all 128 lanes; returns the sum.
HWY_INLINE float Exponentiate(float* HWY_RESTRICT x, float top) {
  const TagF32 d;
  const auto shift = hn::Set(d, top);
  auto sum = hn::Zero(d);
  for (int t = 0; t < kPageTokens; t += kLanes) {
    const auto p = Exp2(hn::Sub(hn::Load(d, x + t), shift));
    hn::Store(p, d, x + t);
    sum = hn::Add(sum, p);
  }
  return Total(sum);
}

HWY_INLINE void ScaleRow(float* HWY_RESTRICT x, int n, float factor) {
  const TagF32 d;
  const auto f = hn::Set(d, factor);
  for (int i = 0; i < n; i += kLanes) hn::Store(hn::Mul(hn::Load(d, x + i), f), d, x + i);
}

/// 2^x of one number, as the kernels compute it.
HWY_INLINE float Exp2One(float x) { return hn::GetLane(Exp2(hn::Set(TagF32(), x))); }

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_SOFTMAX_INL_H_

#include "integrations/ggml/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "integrations/ggml/convert.cc"
#include "hwy/foreach_target.h"
// foreach_target.h must come first
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::ggml::HWY_NAMESPACE {

void F16FromF32RowT(const float* from, f16_bits* to, int64_t count) {
  int64_t i = 0;
#if HWY_TARGET <= HWY_AVX2 || \
    HWY_TARGET == HWY_NEON  // the conversion is one instruction; elsewhere Highway emulates it
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(df, from + i)), dh, reinterpret_cast<hwy::float16_t*>(to + i));
  }
#endif
  for (; i < count; ++i) to[i] = F16FromF32(from[i]);
}

}  // namespace kvrazor::ggml::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::ggml {
namespace {
HWY_EXPORT(F16FromF32RowT);
}  // namespace

void F16FromF32Row(const float* from, f16_bits* to, int64_t count) {
  HWY_DYNAMIC_DISPATCH(F16FromF32RowT)(from, to, count);
}

}  // namespace kvrazor::ggml
#endif

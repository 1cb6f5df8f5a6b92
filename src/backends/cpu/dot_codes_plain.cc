// Integer products with codes of 2 and 4 bits.
#define HWY_WANT_AVX3_DL  // byte dot products
// The fallback target is EMU128 with every compiler, see attend.cc.
#define HWY_BROKEN_EMU128 0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/dot_codes_plain.cc"
#include "hwy/foreach_target.h"

// After foreach_target, which sets the target:
#include "hwy/highway.h"
#include "src/backends/cpu/dot_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {

KVRAZOR_INSTANTIATE_DOT_LANES(PlainCodes<2>)
KVRAZOR_INSTANTIATE_DOT_LANES(PlainCodes<4>)

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

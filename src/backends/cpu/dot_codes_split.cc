// Integer products with codes of 3 bits, in two planes.
#define HWY_WANT_AVX3_DL  // byte dot products
// The fallback target is EMU128 with every compiler, see attend.cc.
#define HWY_BROKEN_EMU128 0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/dot_codes_split.cc"
#include "hwy/foreach_target.h"

// After foreach_target, which sets the target:
#include "hwy/highway.h"
#include "src/backends/cpu/dot_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {

KVRAZOR_INSTANTIATE_DOT_LANES(SplitCodes)

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

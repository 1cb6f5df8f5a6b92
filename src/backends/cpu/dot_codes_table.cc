// Integer products with codes that are looked up in a table.
#define HWY_WANT_AVX3_DL  // byte dot products
// The fallback target is EMU128 with every compiler, see attend.cc.
#define HWY_BROKEN_EMU128 0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/dot_codes_table.cc"
#include "hwy/foreach_target.h"

// After foreach_target, which sets the target:
#include "hwy/highway.h"
#include "src/backends/cpu/dot_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {

KVRAZOR_INSTANTIATE_DOT_LANES(TableCodes<2>)
KVRAZOR_INSTANTIATE_DOT_LANES(TableCodes<3>)
KVRAZOR_INSTANTIATE_DOT_LANES(TableCodes<4>)

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#include <cmath>
#include <limits>
#include <string>

#include "kvrazor/error.h"
#include "src/ops/attend.h"

namespace kvrazor {
namespace {

[[noreturn]] void Refuse(const std::string& why) { throw Error("attend: " + why); }

void CheckSide(const PageSide& side, const PageLayout& layout, const char* what, size_t page) {
  const std::string where = std::string(what) + " of page " + std::to_string(page);
  if ((side.sealed != nullptr) == (side.rows != nullptr)) Refuse(where + " must be either sealed or in 16-bit rows.");
  if (side.sealed && layout.page_bytes == 0) Refuse(where + " is sealed, but its recipe keeps 16 bits.");
  if (side.sealed && side.exact.Any() && !side.exact_rows) Refuse(where + " has exact tokens without their rows.");
}

}  // namespace

void CheckAttendArgs(const AttendArgs& a) {
  if (!a.format) Refuse("format is missing.");
  const HeadShape k = a.format->k.shape;
  const HeadShape v = a.format->v.shape;
  if (k.num_kv_heads != v.num_kv_heads) {
    Refuse("keys have " + std::to_string(k.num_kv_heads) + " heads, values " + std::to_string(v.num_kv_heads) +
           "; they must be equal.");
  }
  if (a.num_qo_heads < 1 || a.num_qo_heads % k.num_kv_heads != 0) {
    Refuse("num_qo_heads=" + std::to_string(a.num_qo_heads) +
           " is no multiple of num_kv_heads=" + std::to_string(k.num_kv_heads) + ".");
  }
  if (a.qo_len < 0) Refuse("qo_len=" + std::to_string(a.qo_len) + " is negative.");
  if (a.qo_len > 0 && (!a.q.data || !a.out.data)) Refuse("q or out is missing.");
  if (!std::isfinite(a.softmax_scale)) Refuse("softmax_scale is not finite.");
  for (size_t i = 0; i < a.pages.size(); ++i) {
    const AttendPage& page = a.pages[i];
    if (page.num_tokens < 1 || page.num_tokens > kPageTokens) {
      Refuse("page " + std::to_string(i) + " has " + std::to_string(page.num_tokens) + " tokens; possible are 1 to " +
             std::to_string(kPageTokens) + ".");
    }
    CheckSide(page.k, a.format->k, "keys", i);
    CheckSide(page.v, a.format->v, "values", i);
    if (a.mask && (page.first_key < 0 || page.first_key + page.num_tokens > a.mask_stride)) {
      Refuse("page " + std::to_string(i) + " has keys up to " + std::to_string(page.first_key + page.num_tokens) +
             ", the mask " + std::to_string(a.mask_stride) + " columns.");
    }
  }
}

void MergePartials(float* out_a, float& lse_a, const float* out_b, float lse_b, int head_dim) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  if (lse_b == kNone) return;
  if (lse_a == kNone) {
    for (int c = 0; c < head_dim; ++c) out_a[c] = out_b[c];
    lse_a = lse_b;
    return;
  }
  const float top = lse_a > lse_b ? lse_a : lse_b;
  const float a = std::exp(lse_a - top);
  const float b = std::exp(lse_b - top);
  const float sum = a + b;
  for (int c = 0; c < head_dim; ++c) out_a[c] = (a * out_a[c] + b * out_b[c]) / sum;
  lse_a = top + std::log(sum);
}

}  // namespace kvrazor

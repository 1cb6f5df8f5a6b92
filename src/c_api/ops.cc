// The ops on pages that the caller keeps.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "src/c_api/guard.h"
#include "src/ops/backend.h"

using namespace kvrazor;
using namespace kvrazor::c_api;

struct kvrazor_format {
  LayerFormat layer;
  int sink_tokens = 0;
  int residual_tokens = 0;
};

struct kvrazor_moment {
  SecondMoment moment;
};

namespace {

const PageLayout& LayoutOf(const kvrazor_format& format, int side) {
  if (side == KVRAZOR_KEY) return format.layer.k;
  if (side == KVRAZOR_VALUE) return format.layer.v;
  throw Error("kvrazor: side is " + std::to_string(side) + "; KVRAZOR_KEY and KVRAZOR_VALUE are possible.");
}

void CheckAligned(const void* page) {
  if (reinterpret_cast<uintptr_t>(page) % 64 != 0)
    throw Error("kvrazor: a sealed page is not 64-byte aligned; allocate it with aligned_alloc(64, ...).");
}

TokenMask MaskOf(const uint64_t* words) {
  TokenMask mask;
  if (words != nullptr) mask.words = {words[0], words[1]};
  return mask;
}

PageSide SideOf(const kvrazor_page_side& side, const PageLayout& layout) {
  if ((side.sealed != nullptr) == (side.rows != nullptr))
    throw Error("kvrazor: a page side must have either sealed bytes or rows; the other is NULL.");
  if (side.sealed != nullptr && layout.page_bytes == 0)
    throw Error("kvrazor: a page side is sealed, but its recipe keeps it in 16 bits; give its rows.");
  CheckAligned(side.sealed);
  const TokenMask exact = side.sealed != nullptr ? MaskOf(side.exact) : TokenMask{};
  if (exact.Any()) (void)Required(side.exact_rows, "exact_rows of a page with exact tokens");
  return {static_cast<const std::byte*>(side.sealed), side.rows, side.exact_rows, exact};
}

/// f32 rows of the format's head_dim.
template <typename ViewType>
ViewType CheckRows(ViewType view, const PageLayout& layout, const char* name) {
  if (view.dtype != Dtype::kF32) throw Error(std::string("kvrazor: ") + name + " must be f32.");
  const int64_t num_tokens = view.num_tokens;
  const bool has_heads = view.num_heads > 0 && view.num_heads % layout.shape.num_kv_heads == 0;
  if (view.head_dim != layout.shape.head_dim || !has_heads || num_tokens < 0 || num_tokens > INT32_MAX) {
    throw Error(std::string("kvrazor: ") + name + " is [" + std::to_string(view.num_tokens) + ", " +
                std::to_string(view.num_heads) + ", " + std::to_string(view.head_dim) +
                "]; it must have a multiple of " + std::to_string(layout.shape.num_kv_heads) + " heads and head_dim " +
                std::to_string(layout.shape.head_dim) + ".");
  }
  if (view.num_tokens > 0) (void)Required(static_cast<const char*>(view.data), name);
  return view;
}

}  // namespace

int kvrazor_format_create(const char* recipe, int layer, int num_kv_heads, int head_dim, kvrazor_format** format) {
  return Guard([&] {
    (void)Required(format, "format");
    if (layer < 0) throw Error("kvrazor: layer is " + std::to_string(layer) + "; layers count from 0.");
    const Recipe r = ParseRecipe(&Required(recipe, "recipe")).ForLayer(layer);
    const HeadShape shape{num_kv_heads, head_dim};
    *format = new kvrazor_format{{MakePageLayout(r.k, Side::kKey, shape), MakePageLayout(r.v, Side::kValue, shape)},
                                 r.sink_tokens,
                                 r.residual_tokens};
    return KVRAZOR_OK;
  });
}

void kvrazor_format_destroy(kvrazor_format* format) { delete format; }

int kvrazor_format_layout(const kvrazor_format* format, int side, kvrazor_page_layout* layout) {
  return Guard([&] {
    const kvrazor_format& f = Required(format, "format");
    const PageLayout& l = LayoutOf(f, side);
    kvrazor_page_layout& out = Required(layout, "layout");
    out = {};
    out.page_bytes = l.page_bytes;
    out.f16_page_bytes = l.f16_page_bytes();
    out.token_scale_at = l.token_scale_at;
    out.head_scalars_at = l.head_scalars_at;
    out.heads_at = l.heads_at;
    out.head_bytes = l.head_bytes;
    out.codes_at = l.codes_at;
    out.codes_bytes = l.codes_bytes;
    out.scale_at = l.scale_at;
    out.offset_at = l.offset_at;
    out.mean_at = l.mean_at;
    out.norm_at = l.norm_at;
    out.centre_at = l.centre_at;
    out.bits = l.recipe.bits;
    out.group_size = l.recipe.group_size;
    out.sink_tokens = f.sink_tokens;
    out.residual_tokens = f.residual_tokens;
    out.bits_per_value = l.bits_per_value();
    out.high_codes_at = l.high_codes_at;
    out.mean_factor_at = l.mean_factor_at;
    return KVRAZOR_OK;
  });
}

int kvrazor_moment_create(const kvrazor_format* format, kvrazor_moment** moment) {
  return Guard([&] {
    (void)Required(moment, "moment");
    *moment = new kvrazor_moment{SecondMoment(Required(format, "format").layer.k.shape)};
    return KVRAZOR_OK;
  });
}

void kvrazor_moment_destroy(kvrazor_moment* moment) { delete moment; }

int kvrazor_moment_add(kvrazor_moment* moment, const kvrazor_tensor* q, int stride) {
  return Guard([&] {
    kvrazor_moment& m = Required(moment, "moment");
    if (stride < 1) throw Error("kvrazor: stride is " + std::to_string(stride) + "; 1 takes every token.");
    PageLayout layout;
    layout.shape = m.moment.shape();
    const TensorView view = CheckRows(View(q, "q"), layout, "q");
    if (view.num_tokens == 0) return KVRAZOR_OK;
    CpuBackend().AddQueries(m.moment, {static_cast<const float*>(view.data), view.token_stride, view.head_stride},
                            static_cast<int>(view.num_tokens), view.num_heads, stride);
    return KVRAZOR_OK;
  });
}

int kvrazor_seal(const kvrazor_format* format, int side, const uint16_t* rows, const uint64_t exact[2],
                 const kvrazor_moment* moment, void* page) {
  return Guard([&] {
    const PageLayout& layout = LayoutOf(Required(format, "format"), side);
    if (layout.page_bytes == 0) throw Error("kvrazor: this recipe keeps the side in 16 bits and never seals it.");
    (void)Required(rows, "rows");
    std::byte* bytes = &Required(static_cast<std::byte*>(page), "page");
    CheckAligned(page);
    if (moment != nullptr && moment->moment.shape() != layout.shape)
      throw Error("kvrazor: moment belongs to a format with other heads; make it with kvrazor_moment_create(format).");
    const SecondMoment* m = moment != nullptr && !moment->moment.empty() ? &moment->moment : nullptr;
    CpuBackend().Seal(layout, rows, MaskOf(exact), m, bytes);
    return KVRAZOR_OK;
  });
}

int kvrazor_dequantize(const kvrazor_format* format, int side, const kvrazor_page_side* page, int first, int last,
                       float* out) {
  return Guard([&] {
    const PageLayout& layout = LayoutOf(Required(format, "format"), side);
    const PageSide view = SideOf(Required(page, "page"), layout);
    if (first < 0 || last < first || last > kPageTokens) {
      throw Error("kvrazor: tokens " + std::to_string(first) + " to " + std::to_string(last) +
                  " of a page; 0 to 128 are possible.");
    }
    if (first == last) return KVRAZOR_OK;
    CpuBackend().Dequantize(layout, view, first, last, &Required(out, "out"));
    return KVRAZOR_OK;
  });
}

int kvrazor_attend(const kvrazor_format* format, const kvrazor_attend_page* pages, int64_t num_pages,
                   const kvrazor_tensor* q, const kvrazor_tensor* out, int64_t causal_base,
                   const kvrazor_attend_options* options, kvrazor_threads* threads) {
  return Guard([&] {
    const LayerFormat& layer = Required(format, "format").layer;
    if (num_pages < 0) throw Error("kvrazor: num_pages is " + std::to_string(num_pages) + "; 0 or more are possible.");
    if (num_pages > 0) (void)Required(pages, "pages");
    const TensorView queries = CheckRows(View(q, "q"), layer.k, "q");
    const MutableTensorView result = CheckRows(MutableView(out, "out"), layer.v, "out");
    if (queries.num_tokens != result.num_tokens || queries.num_heads != result.num_heads)
      throw Error("kvrazor: q and out have different tokens or heads; they must agree.");
    std::vector<AttendPage> views;
    for (int64_t i = 0; i < num_pages; ++i) {
      views.push_back(
          {SideOf(pages[i].k, layer.k), SideOf(pages[i].v, layer.v), pages[i].num_tokens, pages[i].first_key});
    }
    AttendArgs args;
    args.format = &layer;
    args.pages = views;
    args.num_qo_heads = queries.num_heads;
    args.qo_len = static_cast<int>(queries.num_tokens);
    args.q = {static_cast<const float*>(queries.data), queries.token_stride, queries.head_stride};
    args.out = {static_cast<float*>(result.data), result.token_stride, result.head_stride};
    args.causal_base = causal_base;
    const kvrazor_attend_options o = options != nullptr ? *options : kvrazor_attend_options{};
    args.softmax_scale =
        o.softmax_scale != 0 ? o.softmax_scale : 1.0f / std::sqrt(static_cast<float>(queries.head_dim));
    args.logit_softcap = o.logit_softcap;
    args.mask = o.mask;
    args.mask_stride = o.mask_stride;
    args.alibi_slopes = o.alibi_slopes;
    args.sink_logits = o.sink_logits;
    args.lse = o.lse;
    CpuBackend().Attend(args, ExecutorOf(threads));
    return KVRAZOR_OK;
  });
}

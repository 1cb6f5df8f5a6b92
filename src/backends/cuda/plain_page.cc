#include "src/backends/cuda/plain_page.h"

#include "src/backends/cuda/cpu_side.h"
#include "src/codecs/codebook.h"

namespace kvrazor::cuda {
namespace {

PlainSide MakePlainSide(const PageLayout& layout) {
  const SideRecipe& recipe = layout.recipe;
  PlainSide s{};
  s.at = MakeCpuSide(layout);
  s.codec = recipe.codec;
  s.zero_point = recipe.zero_point;
  s.bits = recipe.bits;
  s.per_channel = recipe.axis == Axis::kPerChannel;
  s.rank_one_mean = recipe.rank_one_mean;
  s.rotate = recipe.rotate;
  s.clip = static_cast<float>(recipe.clip_percent) / 100.0f;
  if (recipe.codec == Codec::kCodebook) {
    const Codebook& book = GaussianCodebook(recipe.bits);
    for (int code = 0; code < book.size(); ++code) s.level[code] = static_cast<float>(book.steps[code]) - book.middle;
    for (int code = 0; code + 1 < book.size(); ++code) s.threshold[code] = book.thresholds[code];
    s.step = static_cast<float>(book.step);
  }
  return s;
}

}  // namespace

PlainPage MakePlainPage(const PackedFormat& format) {
  return {MakePlainSide(format.layer.k), MakePlainSide(format.layer.v), format.page_bytes()};
}

}  // namespace kvrazor::cuda

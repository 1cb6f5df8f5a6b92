// A program outside of this project: prints what a page of 2-bit keys takes; exit status 1 if the library is not itself.
#include <atomic>
#include <cstdio>

#include "kvrazor/executor.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "kvrazor/version.h"

int main() {
  const kvrazor::Recipe recipe = kvrazor::ParseRecipe("razor-2");
  const kvrazor::PageLayout page =
      kvrazor::MakePageLayout(recipe.k, kvrazor::Side::kKey, {.num_kv_heads = 8, .head_dim = 128});
  std::atomic<int> tasks{0};
  kvrazor::MakeThreadPool(2)->Run(10, [&](int64_t, int) { ++tasks; });
  std::printf("kvrazor %s, %s keys: %.3f bits per value\n", kvrazor::Version(), recipe.name.c_str(),
              page.bits_per_value());
  return tasks == 10 && page.bits_per_value() > 2 && page.bits_per_value() < 16 ? 0 : 1;
}

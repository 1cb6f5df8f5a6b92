// One million random operations on caches of several recipes against the model (KVRAZOR_TEST_OPERATIONS scales the runs:
// sanitizer builds do fewer).
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kvrazor/cache.h"
#include "tests/cache/random_driver.h"

namespace kvrazor::test {
namespace {

struct Case {
  const char* name;
  const char* recipe;
  int num_kv_heads;
  int num_layers;
  double share;  // of all operations
};

int64_t TotalOperations() {
  const char* text = std::getenv("KVRAZOR_TEST_OPERATIONS");
  return text != nullptr ? std::atoll(text) : KVRAZOR_TEST_OPERATIONS;
}

class CacheRandomTest : public testing::TestWithParam<Case> {};

TEST_P(CacheRandomTest, EqualsTheModel) {
  static const ToyBackend backend;
  DriverOptions o;
  o.cache.num_layers = GetParam().num_layers;
  o.cache.shape = {GetParam().num_kv_heads, 32};
  o.cache.recipe = ParseRecipe(GetParam().recipe);
  o.cache.f16_pages = 14;
  o.cache.sealed_pages = o.cache.recipe.is_f16() ? 0 : 10;
  o.cache.query_stride = 3;
  o.cache.backend = &backend;
  o.num_operations = static_cast<int64_t>(static_cast<double>(TotalOperations()) * GetParam().share);
  const DriverCounts counts = RunDriver(o);
  EXPECT_GE(counts.operations, o.num_operations);
  // The run meant something: it ran out of pages, was refused, copied, and (unless all is 16 bit) sealed and thawed.
  EXPECT_GT(counts.out_of_pages, counts.operations / 1000);
  EXPECT_GT(counts.refused, counts.operations / 1000);
  EXPECT_GT(counts.stats.pages_copied, counts.operations / 1000);
  if (!o.cache.recipe.is_f16()) {
    EXPECT_GT(counts.stats.pages_sealed, counts.operations / 200);
    EXPECT_GT(counts.stats.pages_thawed, counts.operations / 1000);
    EXPECT_EQ(counts.stats.sealed_pages_peak, o.cache.sealed_pages);
  }
  EXPECT_EQ(counts.stats.f16_pages_peak, o.cache.f16_pages);
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, CacheRandomTest,
    testing::Values(Case{"F16", "f16", 1, 1, 0.1}, Case{"Kivi", "kivi", 1, 1, 0.3},
                    Case{"Outliers", "kivi:exact=2,exact-extra=6", 1, 1, 0.1},
                    Case{"KiviWindow256", "kivi:residual=256", 1, 2, 0.1},
                    Case{"OscarSinks", "oscar:sinks=5", 2, 1, 0.1}, Case{"Razor2", "razor-2", 1, 2, 0.2},
                    Case{"MixedLayers", "razor-2:exact=3,exact-extra=9;1=f16;2=oscar:sinks=128", 1, 3, 0.1}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace kvrazor::test

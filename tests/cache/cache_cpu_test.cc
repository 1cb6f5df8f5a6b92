// The random operations with the CPU's own sealing: sealed bytes are those of Backend::Seal on the tokens that the model holds,
// and never change.
#include <gtest/gtest.h>

#include <cctype>
#include <string>

#include "kvrazor/cache.h"
#include "tests/cache/random_driver.h"

namespace kvrazor::test {
namespace {

class CacheCpuTest : public testing::TestWithParam<const char*> {};

TEST_P(CacheCpuTest, EqualsTheModel) {
  DriverOptions o;
  o.cache.num_layers = 1;
  o.cache.shape = {2, 32};
  o.cache.recipe = ParseRecipe(GetParam());
  o.cache.f16_pages = 14;
  o.cache.sealed_pages = o.cache.recipe.is_f16() ? 0 : 10;
  o.cache.backend = &CpuBackend();
  o.num_operations = KVRAZOR_TEST_OPERATIONS / 100;
  o.seed = 3;
  o.count_queries = false;
  o.attend_every = 0;  // tests/conformance compares attention
  const DriverCounts counts = RunDriver(o);
  EXPECT_GT(counts.stats.pages_sealed, o.cache.recipe.is_f16() ? -1 : counts.operations / 200);
}

INSTANTIATE_TEST_SUITE_P(Recipes, CacheCpuTest, testing::Values("f16", "kivi", "oscar", "razor-2", "ott:exact-from=0"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
                           return name;
                         });

}  // namespace
}  // namespace kvrazor::test

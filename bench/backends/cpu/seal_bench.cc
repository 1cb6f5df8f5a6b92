// Sealing on one core: time per page and kv head, and f16 bytes read per second. The pages come from a buffer larger
// than the second-level cache, as they do when a prefill is sealed.
//   seal_bench --benchmark_filter='Seal/razor-2'
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "src/ops/backend.h"

namespace kvrazor {
namespace {

constexpr int kHeads = 4;
constexpr int kCopies = 16;

std::vector<f16_bits> RandomRows(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<f16_bits> rows(static_cast<size_t>(count));
  for (f16_bits& x : rows) x = F16FromF32(normal(random));
  return rows;
}

SecondMoment RandomMoment(HeadShape shape) {
  SecondMoment moment(shape);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<size_t>(256 * shape.num_kv_heads * shape.head_dim));
  for (float& x : q) x = normal(random);
  CpuBackend().AddQueries(moment, {q.data(), shape.num_kv_heads * shape.head_dim, shape.head_dim}, 256,
                          shape.num_kv_heads, 1);
  return moment;
}

/// Time for one head of one page, and how fast its 16-bit rows are read (or would be).
void ReportHead(benchmark::State& state, const PageLayout& layout) {
  const double pages = static_cast<double>(state.iterations());
  state.counters["per_head"] =
      benchmark::Counter(pages * layout.shape.num_kv_heads, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.counters["f16_bytes/s"] =
      benchmark::Counter(pages * static_cast<double>(layout.f16_page_bytes()), benchmark::Counter::kIsRate);
}

void Seal(benchmark::State& state, const std::string& method, Side side, int head_dim) {
  const Recipe recipe = ParseRecipe(method);
  const HeadShape shape = {kHeads, head_dim};
  const PageLayout layout = MakePageLayout(side == Side::kKey ? recipe.k : recipe.v, side, shape);
  const int64_t page_values = kPageTokens * layout.row_values();
  const std::vector<f16_bits> rows = RandomRows(kCopies * page_values);
  const SecondMoment moment = RandomMoment(shape);
  const auto page = hwy::AllocateAligned<std::byte>(static_cast<size_t>(layout.page_bytes));
  TokenMask exact;
  for (int t = 0; t < recipe.sink_tokens; ++t) exact.Set(t);
  int64_t copy = 0;
  for (auto _ : state) {
    CpuBackend().Seal(layout, rows.data() + copy * page_values, exact, &moment, page.get());
    benchmark::ClobberMemory();
    copy = (copy + 1) % kCopies;
  }
  ReportHead(state, layout);
}

void Dequantize(benchmark::State& state, const std::string& method, Side side, int head_dim) {
  const Recipe recipe = ParseRecipe(method);
  const PageLayout layout = MakePageLayout(side == Side::kKey ? recipe.k : recipe.v, side, {kHeads, head_dim});
  const std::vector<f16_bits> rows = RandomRows(kPageTokens * layout.row_values());
  const auto page = hwy::AllocateAligned<std::byte>(static_cast<size_t>(layout.page_bytes));
  CpuBackend().Seal(layout, rows.data(), {}, nullptr, page.get());
  PageSide view;
  view.sealed = page.get();
  std::vector<float> out(static_cast<size_t>(kPageTokens * layout.row_values()));
  for (auto _ : state) {
    CpuBackend().Dequantize(layout, view, 0, kPageTokens, out.data());
    benchmark::ClobberMemory();
  }
  ReportHead(state, layout);
}

/// A prefill chunk of 512 tokens with 9 query heads on 3 kv heads, every 2nd token; qo_len 1 is a decode step.
void AddQueries(benchmark::State& state) {
  const int qo_len = static_cast<int>(state.range(0));
  const int head_dim = static_cast<int>(state.range(1));
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<size_t>(qo_len * 9 * head_dim));
  for (float& x : q) x = normal(random);
  SecondMoment moment({3, head_dim});
  for (auto _ : state) {
    CpuBackend().AddQueries(moment, {q.data(), 9 * head_dim, head_dim}, qo_len, 9, 2);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(AddQueries)->Args({512, 64})->Args({512, 128})->Args({1, 64})->Args({1, 128})->Unit(benchmark::kMicrosecond);

void Rotate(benchmark::State& state) {
  const int head_dim = static_cast<int>(state.range(0));
  std::vector<float> x(static_cast<size_t>(256 * head_dim), 1.0f);
  for (auto _ : state) {
    CpuBackend().Rotate(x.data(), 256, head_dim);
    benchmark::ClobberMemory();
  }
  state.counters["per_row"] = benchmark::Counter(256.0 * static_cast<double>(state.iterations()),
                                                 benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(Rotate)->Arg(64)->Arg(128)->Unit(benchmark::kMicrosecond);

void RegisterAll() {
  for (const Method& method : Methods()) {
    if (method.recipe.is_f16()) continue;
    for (const int head_dim : {64, 128}) {
      for (const Side side : {Side::kKey, Side::kValue}) {
        const std::string name = method.name + (side == Side::kKey ? "/k/" : "/v/") + std::to_string(head_dim);
        benchmark::RegisterBenchmark(("Seal/" + name).c_str(), Seal, method.name, side, head_dim)
            ->Unit(benchmark::kMicrosecond);
        benchmark::RegisterBenchmark(("Dequantize/" + name).c_str(), Dequantize, method.name, side, head_dim)
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor

int main(int argc, char** argv) {
  kvrazor::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

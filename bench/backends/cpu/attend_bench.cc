// Attention over packed pages against ggml's own over its f16 and q8_0 caches, in the same run:
//   attend_bench --head-dim 64 128 --gqa 3 4 8 --kv-len 256 1024 8192 --threads 2 --json attend.json
// The contenders take turns, round by round, so that other load on the machine meets all of them; each rotates over several
// caches that together exceed the L2 cache many times. The packed contenders read what a cache in use holds: the newest
// 192 tokens (the mean of the residual window) in 16 bits, the rest sealed, with random codes and parameters.
#include <sys/utsname.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <hwy/targets.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bench/backends/cpu/ggml_attention.h"
#include "kvrazor/error.h"
#include "src/backends/cpu/attend.h"
#include "tests/backends/cpu/attend_case.h"

namespace kvrazor::bench {
namespace {

struct Options {
  std::vector<int> head_dims = {64, 128};
  std::vector<int> gqa_ratios = {3, 4, 8};
  std::vector<int> kv_lens = {256, 1024, 8192};
  std::vector<int> qo_lens = {1};
  std::vector<std::string> recipes = {"f16", "kivi", "oscar", "razor-2"};
  int kv_heads = 8;
  int threads = 2;
  int rounds = 15;
  int64_t rotate_bytes = int64_t{64} << 20;
  bool no_ggml = false;
  bool cpu_time = false;
  std::string json;
  std::string commit;
};

double Seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Contender {
  std::string name;
  int64_t cache_bytes = 0;
  std::vector<std::function<void()>> caches;  // one attention over each
  std::vector<double> seconds;                // of one attention, a value a round
  size_t next = 0;

  void Round(clockid_t clock) {
    // A round is several attentions where they are short: at least a millisecond.
    const double start = Seconds(clock);
    int runs = 0;
    double elapsed = 0;
    do {
      caches[next]();
      next = (next + 1) % caches.size();
      ++runs;
      elapsed = Seconds(clock) - start;
    } while (elapsed < 1e-3);
    seconds.push_back(elapsed / runs);
  }
  double Median() const {
    std::vector<double> s = seconds;
    std::nth_element(s.begin(), s.begin() + static_cast<std::ptrdiff_t>(s.size() / 2), s.end());
    return s[s.size() / 2];
  }
  double Fastest() const { return *std::min_element(seconds.begin(), seconds.end()); }
  /// Median distance from the median, as a share of it.
  double Spread() const {
    const double median = Median();
    std::vector<double> d;
    for (double s : seconds) d.push_back(std::abs(s - median));
    std::nth_element(d.begin(), d.begin() + static_cast<std::ptrdiff_t>(d.size() / 2), d.end());
    return d[d.size() / 2] / median;
  }
};

int64_t CacheBytes(const LayerFormat& format, std::span<const AttendPage> pages) {
  int64_t bytes = 0;
  for (const AttendPage& page : pages) {
    bytes += page.k.sealed ? format.k.page_bytes : page.num_tokens * format.k.row_values() * 2;
    bytes += page.v.sealed ? format.v.page_bytes : page.num_tokens * format.v.row_values() * 2;
  }
  return bytes;
}

Contender Ours(const std::string& name, const AttentionShape& s, const Options& options, Executor& executor) {
  const Recipe recipe = ParseRecipe(name);
  Contender contender;
  contender.name = name;
  for (int64_t bytes = 0; bytes < options.rotate_bytes && contender.caches.size() < 64;) {
    test::AttendCaseOptions o{.k = recipe.k,
                              .v = recipe.v,
                              .k_shape = {s.num_kv_heads, s.head_dim},
                              .v_shape = {s.num_kv_heads, s.head_dim},
                              .gqa_ratio = s.gqa_ratio,
                              .qo_len = s.qo_len,
                              .kv_len = s.kv_len,
                              .f16_tail = 192,
                              .v_f16_tail = 192,
                              .exact_tokens = std::min(recipe.sink_tokens, 16),
                              .mask = test::MaskKind::kCausalMask,
                              .seed = contender.caches.size() + 1};
    if (s.qo_len > 1)
      o.f16_tail = o.v_f16_tail = std::max(192, s.qo_len);  // a prefill chunk is attended before it is sealed
    auto problem = std::make_shared<test::AttendCase>(o);
    contender.cache_bytes = CacheBytes(problem->format(), problem->args().pages);
    contender.caches.push_back([problem, &executor] {
      const AttendArgs args = problem->args();
      cpu::Attend(args, executor);
    });
    bytes += contender.cache_bytes;
  }
  return contender;
}

Contender Ggml(const std::string& name, GgmlCache cache, const AttentionShape& s, const Options& options) {
  Contender contender;
  contender.name = name;
  for (int64_t bytes = 0; bytes < options.rotate_bytes && contender.caches.size() < 64;) {
    auto attention = std::make_shared<GgmlAttention>(s, cache, options.threads);
    contender.cache_bytes = attention->cache_bytes();
    contender.caches.push_back([attention] { attention->Run(); });
    bytes += contender.cache_bytes;
  }
  return contender;
}

nlohmann::json Machine() {
  utsname system{};
  uname(&system);
  std::ifstream info("/proc/cpuinfo");
  std::string line, cpu;
  while (cpu.empty() && std::getline(info, line)) {
    if (line.rfind("model name", 0) == 0) cpu = line.substr(line.find(':') + 2);
  }
  int64_t best = hwy::SupportedTargets();
  return {{"cpu", cpu},
          {"hardware_threads", std::thread::hardware_concurrency()},
          {"system", system.sysname},
          {"release", system.release},
          {"arch", system.machine},
          {"target", hwy::TargetName(best & -best)}};
}

void Measure(const AttentionShape& s, const Options& options, Executor& executor, nlohmann::json& records) {
  std::vector<Contender> contenders;
  if (!options.no_ggml) {
    contenders.push_back(Ggml("ggml-f16", GgmlCache::kF16, s, options));
    contenders.push_back(Ggml("ggml-q8_0", GgmlCache::kQ8_0, s, options));
  }
  for (const std::string& recipe : options.recipes) contenders.push_back(Ours(recipe, s, options, executor));
  for (int round = 0; round <= options.rounds; ++round) {
    for (Contender& c : contenders) {
      c.Round(options.cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC);
      if (round == 0) c.seconds.clear();  // warm-up
    }
  }
  const double flops = 4.0 * s.head_dim * s.num_kv_heads * s.gqa_ratio * s.qo_len * (s.kv_len - 0.5 * (s.qo_len - 1));
  for (const Contender& c : contenders) {
    const double seconds = c.Median();
    const double to_f16 = options.no_ggml ? 0 : contenders[0].Median() / seconds;
    const double to_q8 = options.no_ggml ? 0 : contenders[1].Median() / seconds;
    const double best_to_f16 = options.no_ggml ? 0 : contenders[0].Fastest() / c.Fastest();
    fmt::print("{:4} {:4} {:6} {:5}  {:10} {:10.1f} {:10.1f} {:5.0f}%  {:7.2f} {:8.1f}  {:6.2f} {:6.2f} {:6.2f}\n",
               s.head_dim, s.gqa_ratio, s.kv_len, s.qo_len, c.name, 1e6 * seconds, 1e6 * c.Fastest(), 100 * c.Spread(),
               1e-9 * static_cast<double>(c.cache_bytes) / seconds, 1e-9 * flops / seconds, to_f16, to_q8, best_to_f16);
    records.push_back({{"head_dim", s.head_dim},
                       {"gqa_ratio", s.gqa_ratio},
                       {"num_kv_heads", s.num_kv_heads},
                       {"kv_len", s.kv_len},
                       {"qo_len", s.qo_len},
                       {"threads", options.threads},
                       {"clock", options.cpu_time ? "cpu" : "wall"},
                       {"name", c.name},
                       {"cache_bytes", c.cache_bytes},
                       {"caches", c.caches.size()},
                       {"rounds", c.seconds.size()},
                       {"median_s", seconds},
                       {"fastest_s", c.Fastest()},
                       {"spread", c.Spread()},
                       {"gflops", 1e-9 * flops / seconds},
                       {"times_ggml_f16", to_f16},
                       {"times_ggml_q8_0", to_q8}});
  }
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Times attention over packed pages against ggml's. Example: attend_bench --gqa 4 --kv-len 8192");
  app.add_option("--head-dim", options.head_dims, "values of a head")->capture_default_str();
  app.add_option("--gqa", options.gqa_ratios, "query heads for each kv head")->capture_default_str();
  app.add_option("--kv-len", options.kv_lens, "tokens held")->capture_default_str();
  app.add_option("--qo-len", options.qo_lens, "new tokens: 1 for decoding, more for a prefill chunk")
      ->capture_default_str();
  app.add_option("--recipe", options.recipes, "recipes to time")->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads, "kv heads")->capture_default_str();
  app.add_option("--threads", options.threads, "threads of each contender")->capture_default_str();
  app.add_option("--rounds", options.rounds, "timed rounds; medians are reported")->capture_default_str();
  app.add_option("--rotate-bytes", options.rotate_bytes, "caches of a contender together exceed this")
      ->capture_default_str();
  app.add_flag("--no-ggml", options.no_ggml, "leave ggml out");
  app.add_flag("--cpu-time", options.cpu_time,
               "time CPU seconds, for a machine with other load; use --threads 1 then: waiting threads may spin");
  app.add_option("--json", options.json, "file for the record");
  app.add_option("--commit", options.commit, "commit to note in the record");
  CLI11_PARSE(app, argc, argv);

  const auto executor = MakeThreadPool(options.threads);
  nlohmann::json record = {{"benchmark", "attend_bench"}, {"machine", Machine()}, {"commit", options.commit}};
  std::string command;
  for (int i = 0; i < argc; ++i) command += (i ? " " : "") + std::string(argv[i]);
  record["command"] = command;
  record["results"] = nlohmann::json::array();
  fmt::print("{:>4} {:>4} {:>6} {:>5}  {:10} {:>10} {:>10} {:>6}  {:>7} {:>8}  {:>6} {:>6} {:>6}\n", "dim", "gqa", "kv",
             "new", "cache", "median us", "best us", "spread", "GB/s", "GFLOP/s", "x f16", "x q8_0", "(best)");
  for (int head_dim : options.head_dims) {
    for (int gqa : options.gqa_ratios) {
      for (int kv_len : options.kv_lens) {
        for (int qo_len : options.qo_lens) {
          Measure({head_dim, options.kv_heads, gqa, std::min(qo_len, kv_len), kv_len}, options, *executor,
                  record["results"]);
        }
      }
    }
  }
  if (!options.json.empty()) {
    std::ofstream file(options.json);
    file << record.dump(1) << "\n";
    if (!file) throw Error("attend_bench: cannot write '" + options.json + "'.");
  }
  return 0;
}

}  // namespace
}  // namespace kvrazor::bench

int main(int argc, char** argv) {
  try {
    return kvrazor::bench::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

// Time of sealing, appending, the query metric and reading back on the GPU, against the copy bandwidth of the same run.
//
//   cuda_store_bench [OUT.json [ONLY]]      8 kv heads, 32 query heads, head_dim 128; ONLY "seal oscar": cases whose name begins so; OUT.json
//                                           may be "-" for none
//
// Each time is the median of graph replays, divided by the launches in the graph; launches go round over buffers larger together than the
// L2 cache. Bytes are what the op must read and write once.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "src/backends/cuda/dequantize.h"
#include "src/backends/cuda/metric.h"
#include "src/backends/cuda/seal.h"
#include "src/core/half.h"

namespace {

using namespace kvrazor;
using namespace kvrazor::cuda;

constexpr int kKvHeads = 8;
constexpr int kQoHeads = 32;
constexpr int kHeadDim = 128;
constexpr int64_t kRow = int64_t{kKvHeads} * kHeadDim;

void Check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("cuda_store_bench: ") + cudaGetErrorString(error));
}

class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes) {
    Check(cudaMalloc(&data_, static_cast<size_t>(bytes)));
    Check(cudaMemset(data_, 0, static_cast<size_t>(bytes)));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  template <class T>
  T* as(int64_t byte = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + byte);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

template <class T>
std::unique_ptr<Buffer> Upload(const std::vector<T>& from) {
  auto to = std::make_unique<Buffer>(static_cast<int64_t>(from.size() * sizeof(T)));
  Check(cudaMemcpy(to->as<T>(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return to;
}

/// Normal f16 values with channel means; a pattern of 8 MB repeated.
std::unique_ptr<Buffer> RandomRows(int64_t values, uint32_t seed) {
  constexpr int64_t kPattern = 4 << 20;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<f16_bits> pattern(static_cast<size_t>(std::min(values, kPattern)));
  for (size_t i = 0; i < pattern.size(); ++i)
    pattern[i] = F16FromF32(normal(random) + 0.25f * static_cast<float>(i % kHeadDim % 9) - 1);
  auto rows = std::make_unique<Buffer>(values * 2);
  for (int64_t at = 0; at < values; at += static_cast<int64_t>(pattern.size())) {
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(pattern.size()), values - at);
    Check(
        cudaMemcpy(rows->as<f16_bits>(at * 2), pattern.data(), static_cast<size_t>(count * 2), cudaMemcpyHostToDevice));
  }
  return rows;
}

struct Timing {
  double us, spread;
};

/// launch(i, stream), i = 0 .. count - 1, captured into one graph.
Timing Time(int count, const std::function<void(int, cudaStream_t)>& launch) {
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreate(&stream));
  launch(0, stream);
  Check(cudaStreamSynchronize(stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < count; ++i) launch(i, stream);
  Check(cudaStreamEndCapture(stream, &graph));
  Check(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<double> us;
  constexpr int kWarm = 3, kReplays = 14;
  for (int i = 0; i < kReplays; ++i) {
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(replay, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaEventSynchronize(end));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin, end));
    if (i >= kWarm) us.push_back(1e3 * ms / count);
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  Check(cudaGraphExecDestroy(replay));
  Check(cudaGraphDestroy(graph));
  Check(cudaStreamDestroy(stream));
  const auto median = [](std::vector<double> x) {
    std::nth_element(x.begin(), x.begin() + static_cast<int64_t>(x.size() / 2), x.end());
    return x[x.size() / 2];
  };
  const double middle = median(us);
  for (double& x : us) x = std::abs(x - middle);
  return {middle, median(us) / middle};
}

class Report {
 public:
  Report(std::string device, double copy, std::string only)
      : device_(std::move(device)), copy_(copy), only_(std::move(only)) {
    std::printf("%s, copy %.0f GB/s (read + written)\n%-34s %10s %7s %9s %s\n", device_.c_str(), copy_ * 1e-9, "op",
                "us", "spread", "GB/s", "of copy");
  }
  bool Wants(const std::string& name) const { return name.compare(0, only_.size(), only_) == 0; }
  void Add(const std::string& op, const std::string& recipe, const std::string& what, Timing t, int64_t bytes) {
    const double rate = static_cast<double>(bytes) / t.us * 1e6;
    std::printf("%-34s %10.2f %6.1f%% %9.0f %6.1f%%\n", (op + " " + recipe + " " + what).c_str(), t.us, 100 * t.spread,
                rate * 1e-9, 100 * rate / copy_);
    lines_.push_back("  {\"op\": \"" + op + "\", \"recipe\": \"" + recipe + "\", \"shape\": \"" + what +
                     "\", \"us\": " + std::to_string(t.us) + ", \"spread\": " + std::to_string(t.spread) +
                     ", \"bytes\": " + std::to_string(bytes) + ", \"share_of_copy\": " + std::to_string(rate / copy_) +
                     "}");
  }
  void Write(const char* path) const {
    std::ofstream out(path);
    out << "{\"device\": \"" << device_ << "\", \"copy_bytes_per_s\": " << std::to_string(copy_)
        << ", \"results\": [\n";
    for (size_t i = 0; i < lines_.size(); ++i) out << lines_[i] << (i + 1 < lines_.size() ? ",\n" : "\n");
    out << "]}\n";
    if (!out) throw std::runtime_error(std::string("cuda_store_bench: cannot write ") + path);
  }

 private:
  std::string device_;
  double copy_;
  std::string only_;
  std::vector<std::string> lines_;
};

/// Bytes read and written a second, the best of several copies of 1 GiB.
double CopyBandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Buffer from(kBytes), to(kBytes);
  cudaEvent_t begin = nullptr, end = nullptr;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  float best = 1e30f;
  for (int i = 0; i < 8; ++i) {
    float ms = 0;
    Check(cudaEventRecord(begin));
    Check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), kBytes, cudaMemcpyDeviceToDevice));
    Check(cudaEventRecord(end));
    Check(cudaEventSynchronize(end));
    Check(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  return 2e3 * kBytes / best;
}

PackedFormat Format(const std::string& text, int compute_major = kPackedComputeMajor) {
  const Recipe recipe = ParseRecipe(text);
  const HeadShape shape{kKvHeads, kHeadDim};
  return MakePackedFormat({MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)},
                          compute_major);
}

/// A metric learnt from random queries.
std::unique_ptr<Buffer> MakeMetric(const MetricPlan& plan, const Device&) {
  const auto q = RandomRows(4096 * int64_t{kQoHeads} * kHeadDim, 5);
  const Buffer moment(plan.moment_bytes());
  auto metric = std::make_unique<Buffer>(plan.metric_bytes());
  plan.AddQueries({.q = q->as<f16_bits>(), .num_tokens = 4096, .sample = 2}, 1.f, moment.as<float>(), nullptr);
  plan.Factor(moment.as<float>(), metric->as<void>(), nullptr);
  Check(cudaDeviceSynchronize());
  return metric;
}

void BenchSeal(Report& report, const Device& device, const MetricPlan& metric_plan) {
  constexpr int kTokensAll = 128 * 1024, kPages = kTokensAll / kPageTokens;
  const auto k = RandomRows(kTokensAll * kRow, 1), v = RandomRows(kTokensAll * kRow, 2);
  std::vector<SealJob> list(kPages);
  for (int i = 0; i < kPages; ++i) list[i] = {.source = i * kPageTokens, .target = i};
  const auto jobs = Upload(list);
  const auto metric = MakeMetric(metric_plan, device);
  const MetricPlan plain_plan({kHeadDim, kKvHeads, kQoHeads, /*plain=*/true}, device);
  const auto plain_metric = MakeMetric(plain_plan, device);
  struct Case {
    const char* recipe;
    bool with_metric = false, plain = false;
  };
  for (const Case& c : {Case{"oscar"}, Case{"kivi"}, Case{"razor-2", true}, Case{"razor-2"}, Case{"oscar", false, true},
                        Case{"quarot"}, Case{"turboquant-2"}, Case{"razor-2", true, true}}) {
    const PackedFormat f = Format(c.recipe, c.plain ? kPlainComputeMajor : kPackedComputeMajor);
    const bool plain = f.kind == PageKind::kPlain;
    const std::string what = std::string("128K tokens") + (plain ? ", plain pages" : "") +
                             (f.kind == PageKind::kRazor && !c.with_metric ? ", no metric" : "");
    if (!report.Wants(std::string("seal ") + c.recipe + " " + what)) continue;
    const SealPlan plan({.format = f, .max_jobs = kPages}, device);
    plan.Init();
    const Buffer packed(kPages * f.page_bytes());
    const Timing t = Time(2, [&](int, cudaStream_t s) {
      plan.Run({.k = k->as<f16_bits>(),
                .v = v->as<f16_bits>(),
                .packed_pages = packed.as<std::byte>(),
                .jobs = jobs->as<SealJob>(),
                .num_jobs = kPages,
                .metric = !c.with_metric ? nullptr : (plain ? plain_metric : metric)->as<void>()},
               s);
    });
    report.Add("seal", c.recipe, what, t, 2 * kTokensAll * kRow * 2 + kPages * f.page_bytes());
    // Back to row pages.
    std::vector<DequantizeJob> back(kPages);
    for (int i = 0; i < kPages; ++i) back[i] = {.source = i, .target = ~i};
    const auto back_jobs = Upload(back);
    const Buffer rows(kPages * f.row_page_bytes());
    const DequantizePlan read({.format = f, .max_jobs = kPages}, device);
    const Timing r = Time(2, [&](int, cudaStream_t s) {
      read.Run({.packed_pages = packed.as<std::byte>(),
                .row_pages = rows.as<std::byte>(),
                .jobs = back_jobs->as<DequantizeJob>(),
                .num_jobs = kPages},
               s);
    });
    report.Add("dequantize", c.recipe, what, r, 2 * kTokensAll * kRow * 2 + kPages * f.page_bytes());
  }
}

void BenchAppend(Report& report, const Device& device, const MetricPlan& metric_plan) {
  constexpr int kBatch = 64, kSets = 8, kLaunches = 32;
  const auto metric = MakeMetric(metric_plan, device);
  for (const char* recipe : {"oscar", "kivi", "razor-2"}) {
    const PackedFormat f = Format(recipe);
    // A set: for each sequence the page that is sealed and the one that takes the new row.
    const auto pool = RandomRows(kSets * 2 * kBatch * f.row_page_bytes() / 2, 3);
    const Buffer packed(kSets * kBatch * f.page_bytes());
    const auto k = RandomRows(kSets * kBatch * kRow, 6), v = RandomRows(kSets * kBatch * kRow, 7);
    std::vector<int32_t> slots;
    for (int i = 0; i < kBatch; ++i) slots.push_back((2 * i + 1) * kPageTokens + i);
    const auto d_slots = Upload(slots);
    for (const int num_jobs : {0, 1, 64}) {
      const std::string what = "64 tokens, " + std::to_string(num_jobs) + " sealed";
      if (!report.Wants(std::string("append ") + recipe + " " + what)) continue;
      std::vector<SealJob> list(kBatch);
      for (int i = 0; i < kBatch; ++i) list[i] = {.source = ~(2 * i), .target = i < num_jobs ? i : -1};
      std::shuffle(list.begin(), list.end(), std::mt19937(1));
      const auto jobs = Upload(list);
      const SealPlan plan({.format = f, .max_jobs = kBatch, .max_tokens = kBatch}, device);
      plan.Init();
      const Timing t = Time(kLaunches, [&](int i, cudaStream_t s) {
        const int set = i % kSets;
        std::byte* rows = pool->as<std::byte>(set * 2 * kBatch * f.row_page_bytes());
        const AppendArrays tokens{.k = k->as<f16_bits>(set * kBatch * kRow * 2),
                                  .v = v->as<f16_bits>(set * kBatch * kRow * 2),
                                  .slots = d_slots->as<int32_t>(),
                                  .row_pages = rows,
                                  .num_row_pages = 2 * kBatch,
                                  .num_tokens = kBatch};
        plan.Append(tokens,
                    {.row_pages = rows,
                     .packed_pages = packed.as<std::byte>(set * kBatch * f.page_bytes()),
                     .jobs = jobs->as<SealJob>(),
                     .num_jobs = num_jobs == 0 ? 0 : kBatch,
                     .metric = f.kind == PageKind::kRazor ? metric->as<void>() : nullptr},
                    s);
      });
      report.Add("append", recipe, what, t, 4 * kBatch * kRow * 2 + num_jobs * (f.row_page_bytes() + f.page_bytes()));
    }
  }
}

void BenchMetric(Report& report, const MetricPlan& plan) {
  constexpr int kTokensAll = 32 * 1024;
  const auto q = RandomRows(int64_t{kTokensAll} * kQoHeads * kHeadDim, 8);
  const Buffer moment(plan.moment_bytes()), metric(plan.metric_bytes());
  for (const int tokens : {64, 2048, kTokensAll}) {
    const int sample = tokens > 64 ? 16 : 1;
    const Timing t = Time(4, [&](int, cudaStream_t s) {
      plan.AddQueries({.q = q->as<f16_bits>(), .num_tokens = tokens, .sample = sample}, 1.f, moment.as<float>(), s);
    });
    report.Add("second moment", "razor-2", std::to_string(tokens) + " tokens, 1 in " + std::to_string(sample), t,
               int64_t{tokens} / sample * kQoHeads * kHeadDim * 2 + 2 * plan.moment_bytes());
  }
  const Timing t = Time(4, [&](int, cudaStream_t s) { plan.Factor(moment.as<float>(), metric.as<void>(), s); });
  report.Add("factor", "razor-2", "8 heads", t, plan.moment_bytes() + plan.metric_bytes());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      std::printf("cuda_store_bench: no CUDA device on this machine, nothing was measured\n");
      return 0;
    }
    const Device device = CurrentDevice();
    Report report(device.name, CopyBandwidth(), argc > 2 ? argv[2] : "");
    const MetricPlan metric({kHeadDim, kKvHeads, kQoHeads}, device);
    metric.Init();
    BenchSeal(report, device, metric);
    BenchAppend(report, device, metric);
    if (report.Wants("second moment") || report.Wants("factor")) BenchMetric(report, metric);
    if (argc > 1 && std::string(argv[1]) != "-") report.Write(argv[1]);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

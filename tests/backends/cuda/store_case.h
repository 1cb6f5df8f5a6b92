// What the tests of sealing, appending and reading back share: formats by name, guarded device pages, launches on a graph.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "src/backends/cuda/metric.h"
#include "src/backends/cuda/plain_instance.h"
#include "src/backends/cuda/seal.h"
#include "tests/backends/cuda/device_buffer.h"
#include "tests/conformance/cases.h"

namespace kvrazor::cuda {

struct FormatCase {
  std::string recipe;
  HeadShape shape;
  int compute_major = kPackedComputeMajor;  ///< below: plain pages whatever the recipe
};
inline void PrintTo(const FormatCase& c, std::ostream* out) {
  *out << c.recipe << " " << c.shape.num_kv_heads << "x" << c.shape.head_dim
       << (c.compute_major < kPackedComputeMajor ? " plain" : "");
}
inline std::string FormatName(const testing::TestParamInfo<FormatCase>& info) {
  return conformance::TestName(info.param.recipe + "_" + conformance::ShapeName(info.param.shape) +
                               (info.param.compute_major < kPackedComputeMajor ? "_plain" : ""));
}

inline PackedFormat Format(const FormatCase& c) {
  const Recipe recipe = ParseRecipe(c.recipe);
  return MakePackedFormat(
      {MakePageLayout(recipe.k, Side::kKey, c.shape), MakePageLayout(recipe.v, Side::kValue, c.shape)},
      c.compute_major);
}

/// Cases without those that this build has no kernels for (KVRAZOR_CUDA_HEAD_DIMS).
inline std::vector<FormatCase> Built(std::vector<FormatCase> cases) {
  std::erase_if(cases, [](const FormatCase& c) {
    if (Format(c).kind == PageKind::kPlain) {
      const auto plain = PlainStoreInstances();
      return std::none_of(plain.begin(), plain.end(),
                          [&](const PlainStoreInstance& i) { return i.head_dim == c.shape.head_dim; });
    }
    const auto instances = SealInstances();
    return std::none_of(instances.begin(), instances.end(),
                        [&](const SealInstance& i) { return i.form == Format(c).form(); });
  });
  return cases;
}

/// Every kind of page, both head dimensions, heads in a cluster (1, 2, 3, 8) and beyond one (9).
inline std::vector<FormatCase> FormatCases() {
  return Built({{"razor-2", {2, 64}},
                {"razor-2", {1, 128}},
                {"razor-2", {3, 128}},
                {"oscar", {3, 64}},
                {"oscar", {9, 64}},
                {"oscar", {8, 128}},
                {"kivi", {2, 64}},
                {"kivi", {2, 128}},
                {"oscar:k2g64,v2g64", {2, 64}},
                {"oscar:k2g128,v2g64", {1, 128}},
                {"kivi:k2g64,v2g128", {2, 128}},
                {"razor-3", {2, 64}},
                {"razor-3", {3, 128}},
                {"razor-3v", {1, 64}},
                {"razor-3v", {2, 128}},
                {"oscar:k4g32,v4g32", {3, 64}},
                {"oscar:k4g64,v2g32", {2, 128}},
                {"kivi:k2g32,v4g64", {2, 64}},
                {"kivi:k4g32,v4g32", {1, 128}}});
}

/// Plain pages: every codec and width of codes, every head_dim.
inline std::vector<FormatCase> PlainFormatCases() {
  return Built({{"quarot", {2, 64}},
                {"quarot", {3, 128}},
                {"quarot-sym", {1, 256}},
                {"quarot:k3g64,v4g64", {2, 128}},
                {"quarot-sym:k4g32,v3g128", {2, 128}},
                {"turboquant-2", {2, 64}},
                {"turboquant-2.5", {3, 128}},
                {"turboquant-3", {1, 256}},
                {"turboquant-2:k4,v4", {2, 128}},
                {"oscar:k3g32,v3g32", {3, 128}},
                {"oscar-kernel", {2, 128}},
                {"oscar", {9, 256}},
                {"oscar:k4g128,v2g128", {2, 256}},
                {"kivi", {2, 256}},
                {"kivi:k3g64,v4g32", {1, 64}},
                {"oscar", {8, 128}, kPlainComputeMajor},
                {"kivi:k2g32,v4g64", {2, 64}, kPlainComputeMajor},
                {"razor-2", {2, 256}},
                {"razor-3v", {1, 256}},
                {"razor-2:k4,v3g64", {2, 128}},
                {"razor-2r", {3, 128}, kPlainComputeMajor},
                {"razor-3", {2, 64}, kPlainComputeMajor}});
}

/// M of all heads as the GPU keeps it, f32 [heads][D][D].
inline std::vector<float> SquareMoment(const SecondMoment& moment) {
  std::vector<float> all;
  for (int h = 0; h < moment.shape().num_kv_heads; ++h) {
    const std::vector<float> head = moment.Square(h);
    all.insert(all.end(), head.begin(), head.end());
  }
  return all;
}

inline f16_bits RandomFinite(std::mt19937& random) { return conformance::NormalF16(random, 2); }

/// Runs `launch` captured in a graph, twice.
template <class Launch>
void ReplayTwice(Launch launch) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  CheckCuda(cudaStreamCreate(&stream));
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  launch(stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&replay, graph, 0));
  CheckCuda(cudaGraphLaunch(replay, stream));
  CheckCuda(cudaGraphLaunch(replay, stream));
  CheckCuda(cudaStreamSynchronize(stream));
  CheckCuda(cudaGraphExecDestroy(replay));
  CheckCuda(cudaGraphDestroy(graph));
  CheckCuda(cudaStreamDestroy(stream));
}

}  // namespace kvrazor::cuda

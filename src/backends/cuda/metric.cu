// Second moment and its factor, one CTA a kv head.
//
//   AddQueries  64 rows of queries at a time in shared memory, f16; S = Q^T Q by mma (products of f16 are exact, sums f32), the rows not
//               rotated: M += H S H once at the end. D = 128: warp (i, j) of 4 x 2 holds 32 x 64 of S; 32768 rows of 4 heads: 67 G products
//   Factor      reverse Cholesky without square roots in shared memory, a pivot at a time from the last: A_ik -= A_ji A_jk / A_jj for
//               k <= i < j; D^3 / 6 multiply-adds, D barriers
#include <string>

#include "src/backends/cuda/metric.h"
#include "src/backends/cuda/metric_layout.h"
#include "src/backends/cuda/metric_params.h"
#include "src/backends/cuda/plain_instance.h"
#include "src/backends/cuda/plain_metric.h"
#include "src/backends/cuda/plan_op.h"
#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {
namespace {

constexpr int kBatchRows = 64;

template <int kDim>
struct MomentShared {
  static constexpr int kThreads = kDim * kDim / 64;  // a warp holds 32 x 64
  static constexpr int kStride = kDim + 8;           // f16 values a row: ldmatrix without bank conflicts
  uint16_t rows[kBatchRows][kStride];
  float sum[kDim][kDim + 1];
};

/// Rows [first, first + 64) of the sample to shared memory: 0 behind the end, and where a value is not finite.
template <int kDim>
__device__ void LoadQueries(const QueryParams& p, int kv_head, int64_t first, MomentShared<kDim>& s) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kBatchRows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t n = first + row;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (n < p.num_rows) {
      const int64_t token = n / p.gqa_ratio * p.sample;
      const int64_t head = int64_t{kv_head} * p.gqa_ratio + n % p.gqa_ratio;
      v = __ldg(reinterpret_cast<const uint4*>(p.q + token * p.token_bytes + head * p.head_bytes) + chunk);
    }
    unsigned bad = !IsClean(CheckFinite(v, __float2half2_rn(0.f)));
#pragma unroll
    for (int mask = 1; mask < kChunks; mask *= 2) bad |= __shfl_xor_sync(~0u, bad, mask);  // kChunks lanes hold a row
    *reinterpret_cast<uint4*>(&s.rows[row][8 * chunk]) = bad ? make_uint4(0, 0, 0, 0) : v;
  }
}

/// Rotates the rows of sum, or its columns: a thread a line. 1 / sqrt(D) of both rotations is the caller's.
template <int kDim, bool kColumns>
__device__ void RotateSum(MomentShared<kDim>& s) {
  static_assert(MomentShared<kDim>::kThreads >= kDim);
  const int line = threadIdx.x;
  if (line < kDim) {
    float x[kDim];
#pragma unroll
    for (int i = 0; i < kDim; ++i) x[i] = kColumns ? s.sum[i][line] : s.sum[line][i];
    RegisterStage<1>(x);
    RegisterStage<2>(x);
    RegisterStage<4>(x);
    RegisterStage<8>(x);
    RegisterStage<16>(x);
    RegisterStage<32>(x);
    if constexpr (kDim == 128) RegisterStage<64>(x);
#pragma unroll
    for (int i = 0; i < kDim; ++i) (kColumns ? s.sum[i][line] : s.sum[line][i]) = x[i];
  }
  __syncthreads();
}

template <int kDim>
__global__ void __launch_bounds__(MomentShared<kDim>::kThreads) AddQueriesKernel(const QueryParams p) {
  extern __shared__ uint4 shared[];
  MomentShared<kDim>& s = *reinterpret_cast<MomentShared<kDim>*>(shared);
  constexpr int kStride = MomentShared<kDim>::kStride;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int i0 = 32 * (warp / (kDim / 64)), j0 = 64 * (warp % (kDim / 64));
  float acc[2][8][4] = {};
  for (int64_t first = 0; first < p.num_rows; first += kBatchRows) {
    __syncthreads();
    LoadQueries<kDim>(p, blockIdx.x, first, s);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kBatchRows; k += 16) {
      uint32_t a[2][4], b[4][4];
      const int row = k + (lane & 7) + 8 * (lane >> 4);  // operand A: transposed rows, the four matrices (i, k), (i + 8, k), (i, k + 8), ..
#pragma unroll
      for (int mt = 0; mt < 2; ++mt)
        LoadMatricesTransposed(a[mt], SharedAddress(&s.rows[0][0]) + (row * kStride + i0 + 16 * mt + 8 * ((lane >> 3) & 1)) * 2);
      const int row_b = k + (lane & 15);  // operand B: (k, j), (k + 8, j), (k, j + 8), (k + 8, j + 8)
#pragma unroll
      for (int nt = 0; nt < 4; ++nt)
        LoadMatricesTransposed(b[nt], SharedAddress(&s.rows[0][0]) + (row_b * kStride + j0 + 16 * nt + 8 * (lane >> 4)) * 2);
#pragma unroll
      for (int mt = 0; mt < 2; ++mt) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          float(&c)[4] = acc[mt][n];
          MmaF16(c[0], c[1], c[2], c[3], a[mt][0], a[mt][1], a[mt][2], a[mt][3], b[n / 2][2 * (n % 2)], b[n / 2][2 * (n % 2) + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int mt = 0; mt < 2; ++mt) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s.sum[i0 + 16 * mt + g + 8 * (e / 2)][j0 + 8 * n + 2 * q + e % 2] = acc[mt][n][e];
    }
  }
  __syncthreads();
  RotateSum<kDim, false>(s);
  RotateSum<kDim, true>(s);
  float* moment = p.moment + int64_t{blockIdx.x} * kDim * kDim;
  for (int i = threadIdx.x; i < kDim * kDim; i += blockDim.x) {
    // The lower triangle for both halves: M stays symmetric to the last bit.
    const int row = i / kDim, column = i % kDim;
    const float x = row >= column ? s.sum[row][column] : s.sum[column][row];
    moment[i] = fmaf(p.keep, moment[i], x * (1.f / kDim));
  }
}

// ---- factor
constexpr int kFactorThreads = 512;

template <int kDim>
struct FactorShared {
  float a[kDim][kDim + 1];
  float pivot[kDim];
  float trace;
};

template <int kDim>
__global__ void __launch_bounds__(kFactorThreads) FactorKernel(const float* moments, uint8_t* metrics) {
  extern __shared__ uint4 shared[];
  FactorShared<kDim>& s = *reinterpret_cast<FactorShared<kDim>*>(shared);
  using Metric = MetricLayout<kDim>;
  const float* moment = moments + int64_t{blockIdx.x} * kDim * kDim;
  uint8_t* metric = metrics + int64_t{blockIdx.x} * Metric::kBytes;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid & 31;
  if (warp == 0) {
    float trace = 0;
    for (int c = lane; c < kDim; c += 32) trace += moment[c * kDim + c];
    for (int mask = 16; mask > 0; mask /= 2) trace += __shfl_xor_sync(~0u, trace, mask);
    if (lane == 0) s.trace = trace;
  }
  __syncthreads();
  const float scale = static_cast<float>(kDim) / s.trace;
  const bool seen = s.trace > 0 && isfinite(s.trace) && isfinite(scale);
  for (int i = tid; i < kDim * kDim; i += kFactorThreads) {
    const int row = i / kDim, column = i % kDim;
    const float damping = row == column ? kMetricDamping : 0.f;
    s.a[row][column] = seen ? moment[i] * scale + damping : (row == column ? 1.f : 0.f);
  }
  __syncthreads();
  for (int j = kDim - 1; j >= 0; --j) {
    // A positive definite matrix keeps its pivots above the damping; rounding may not.
    const float pivot = fmaxf(s.a[j][j], 0.5f * kMetricDamping);
    if (tid == 0) s.pivot[j] = pivot;
    const float inverse = __fdiv_rn(1.f, pivot);
    constexpr int kWarps = kFactorThreads / 32, kRows = 4, kColumns = kDim / 32;  // rows of a warp at once: their loads wait together
    float row_j[kColumns];
#pragma unroll
    for (int m = 0; m < kColumns; ++m) row_j[m] = s.a[j][lane + 32 * m];
    for (int first = warp; first < j; first += kRows * kWarps) {
      float a[kRows][kColumns], factor[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = min(first + r * kWarps, kDim - 1);
        factor[r] = s.a[j][i] * inverse;
#pragma unroll
        for (int m = 0; m < kColumns; ++m) a[r][m] = s.a[i][lane + 32 * m];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = first + r * kWarps;
#pragma unroll
        for (int m = 0; m < kColumns; ++m) {
          if (i < j && lane + 32 * m <= i) s.a[i][lane + 32 * m] = fmaf(-factor[r], row_j[m], a[r][m]);
        }
      }
    }
    __syncthreads();
  }
  // W_ic = A_ci / pivot_c for i < c.
  const auto weight = [&](int i, int c) { return i < c ? s.a[c][i] * __fdiv_rn(1.f, s.pivot[c]) : 0.f; };
  const auto split = [&](int i, int c) -> uint32_t {
    const float w = i == c ? 1.f : weight(i, c);
    const half high = __float2half_rn(w);
    return __half_as_ushort(high) | static_cast<uint32_t>(__half_as_ushort(__float2half_rn(w - __half2float(high)))) << 16;
  };
  for (int f = tid; f < Metric::kBlocks * Metric::kBlocks * 32; f += kFactorThreads) {
    const int q = f % 4, g = f / 4 % 8, block = f / 32 % Metric::kBlocks, kt = f / 32 / Metric::kBlocks;
    uint32_t w[2][4];  // [channel g, g + 8]
    for (int half = 0; half < 2; ++half) {
      for (int e = 0; e < 4; ++e) w[half][e] = split(16 * kt + 4 * q + e, 16 * block + g + 8 * half);
    }
    uint4* to = reinterpret_cast<uint4*>(metric + Metric::kFragments) + (kt * Metric::kBlocks + block) * 64 + 4 * g + q;
    to[0] = make_uint4(__byte_perm(w[0][0], w[0][1], 0x5410), __byte_perm(w[1][0], w[1][1], 0x5410), __byte_perm(w[0][2], w[0][3], 0x5410),
                       __byte_perm(w[1][2], w[1][3], 0x5410));
    to[32] = make_uint4(__byte_perm(w[0][0], w[0][1], 0x7632), __byte_perm(w[1][0], w[1][1], 0x7632), __byte_perm(w[0][2], w[0][3], 0x7632),
                        __byte_perm(w[1][2], w[1][3], 0x7632));
  }
  for (int x = tid; x < Metric::kBlocks * 256; x += kFactorThreads) {
    const int block = x / 256, i = x / 16 % 16, c = x % 16;
    reinterpret_cast<float*>(metric + Metric::kWithin)[x] = weight(16 * block + i, 16 * block + c);
  }
  for (int c = tid; c < kDim; c += kFactorThreads) reinterpret_cast<float*>(metric + Metric::kPivots)[c] = s.pivot[c];
}

constexpr PlanOp kOp{"metric"};

PlainStoreInstance FindPlain(int head_dim) {
  std::string built;
  for (const PlainStoreInstance& i : PlainStoreInstances()) {
    if (i.head_dim == head_dim) return i;
    built += (built.empty() ? "" : ", ") + Text(i.head_dim);
  }
  kOp.Refuse("head_dim=" + Text(head_dim) + "; this build has " + built + ". Rebuild with -DKVRAZOR_CUDA_HEAD_DIMS.");
}

template <class Fn>
void DispatchDim(int head_dim, Fn fn) {
  if (head_dim == 64) return fn.template operator()<64>();
  fn.template operator()<128>();
}

}  // namespace

MetricPlan::MetricPlan(const MetricSpec& spec, const Device& device) : spec_(spec), device_(device) {
  const int needed = spec.plain ? kPlainComputeMajor : kPackedComputeMajor;
  if (device.compute_major < needed) {
    kOp.Refuse("no kernel for " + device.name + " (compute capability " + Text(device.compute_major) + ".x); " +
           (spec.plain ? "plain pages need 8.0. Choose the cpu backend." : "packed pages need 9.0. Keep plain pages (MetricSpec::plain)."));
  }
  if (spec.plain) {
    FindPlain(spec.head_dim);
  } else if (spec.head_dim != 64 && spec.head_dim != 128) {
    kOp.Refuse("head_dim=" + Text(spec.head_dim) + "; possible are 64 and 128 with packed pages. Keep plain pages (MetricSpec::plain).");
  }
  if (spec.num_kv_heads < 1 || spec.num_kv_heads > 65535) kOp.Refuse("num_kv_heads=" + Text(spec.num_kv_heads) + " is out of range.");
  if (spec.num_qo_heads < 1 || spec.num_qo_heads % spec.num_kv_heads != 0) {
    kOp.Refuse("num_qo_heads=" + Text(spec.num_qo_heads) + "; possible are multiples of num_kv_heads=" + Text(spec.num_kv_heads) + ".");
  }
}

std::string MetricPlan::Explain() const {
  if (spec_.plain) {
    return "query metric on " + device_.name + " for plain pages: second moment and reverse Cholesky on CUDA cores, correct, not fast, " +
           Text(spec_.num_kv_heads) + " heads of head_dim " + Text(spec_.head_dim);
  }
  return "query metric on " + device_.name + ": second moment on f16 tensor cores, rotated once per call; reverse Cholesky in shared memory, " +
         Text(spec_.num_kv_heads) + " heads of head_dim " + Text(spec_.head_dim) + ", a CTA each";
}

int64_t MetricPlan::moment_bytes() const {
  return int64_t{spec_.num_kv_heads} * spec_.head_dim * spec_.head_dim * static_cast<int64_t>(sizeof(float));
}

int64_t MetricPlan::metric_bytes() const {
  if (spec_.plain) return spec_.num_kv_heads * PlainMetricFloats(spec_.head_dim) * static_cast<int64_t>(sizeof(float));
  return int64_t{spec_.num_kv_heads} * (spec_.head_dim == 64 ? MetricLayout<64>::kBytes : MetricLayout<128>::kBytes);
}

void MetricPlan::Init() const {
  if (spec_.plain) return;
  DispatchDim(spec_.head_dim, [&]<int kDim>() {
    kOp.Check(cudaFuncSetAttribute(&AddQueriesKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(MomentShared<kDim>)), "shared memory");
    kOp.Check(cudaFuncSetAttribute(&FactorKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(FactorShared<kDim>)), "shared memory");
  });
}

void MetricPlan::AddQueries(const QuerySample& x, float keep, float* moment, cudaStream_t stream) const {
  if (!x.q || !moment) kOp.Refuse("q and moment must not be null.");
  if (x.num_tokens < 0 || x.sample < 1) {
    kOp.Refuse("num_tokens=" + Text(x.num_tokens) + ", sample=" + Text(x.sample) + "; possible are num_tokens >= 0 and sample >= 1.");
  }
  if (!(keep >= 0 && keep <= 1)) kOp.Refuse("keep must lie between 0 and 1.");
  if (x.token_stride % 8 != 0 || x.head_stride % 8 != 0 || x.token_stride < 0 || x.head_stride < 0) {
    kOp.Refuse("strides must be multiples of 8 values.");
  }
  if (reinterpret_cast<uintptr_t>(x.q) % 16 != 0) kOp.Refuse("q must be 16-byte aligned.");
  const int gqa_ratio = spec_.num_qo_heads / spec_.num_kv_heads;
  const int64_t tokens = (x.num_tokens + int64_t{x.sample} - 1) / x.sample;
  const QueryParams params{.q = reinterpret_cast<const uint8_t*>(x.q),
                           .token_bytes = 2 * (x.token_stride ? x.token_stride : int64_t{spec_.num_qo_heads} * spec_.head_dim),
                           .head_bytes = 2 * (x.head_stride ? x.head_stride : int64_t{spec_.head_dim}),
                           .num_rows = tokens * gqa_ratio,
                           .gqa_ratio = gqa_ratio,
                           .sample = x.sample,
                           .keep = keep,
                           .moment = moment};
  if (spec_.plain) {
    const PlainKernel kernel = FindPlain(spec_.head_dim).add_queries;
    const auto tiles = static_cast<unsigned>(spec_.head_dim / 32);
    const void* arguments[] = {&params};
    kOp.Check(cudaLaunchKernel(kernel.function, dim3(tiles, tiles, static_cast<unsigned>(spec_.num_kv_heads)), dim3(static_cast<unsigned>(kernel.threads)),
                           const_cast<void**>(arguments), static_cast<size_t>(kernel.shared_bytes), stream),
          "the launch was refused");
    return;
  }
  DispatchDim(spec_.head_dim, [&]<int kDim>() {
    AddQueriesKernel<kDim><<<spec_.num_kv_heads, MomentShared<kDim>::kThreads, sizeof(MomentShared<kDim>), stream>>>(params);
  });
  kOp.Check(cudaGetLastError(), "the launch was refused");
}

void MetricPlan::Factor(const float* moment, void* metric, cudaStream_t stream) const {
  if (!moment || !metric) kOp.Refuse("moment and metric must not be null.");
  if (reinterpret_cast<uintptr_t>(metric) % 16 != 0) kOp.Refuse("metric must be 16-byte aligned.");
  if (spec_.plain) {
    const PlainKernel kernel = FindPlain(spec_.head_dim).factor;
    const void* arguments[] = {&moment, &metric};
    kOp.Check(cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(spec_.num_kv_heads)), dim3(static_cast<unsigned>(kernel.threads)),
                           const_cast<void**>(arguments), 0, stream),
          "the launch was refused");
    return;
  }
  DispatchDim(spec_.head_dim, [&]<int kDim>() {
    FactorKernel<kDim><<<spec_.num_kv_heads, kFactorThreads, sizeof(FactorShared<kDim>), stream>>>(moment, static_cast<uint8_t*>(metric));
  });
  kOp.Check(cudaGetLastError(), "the launch was refused");
}

}  // namespace kvrazor::cuda

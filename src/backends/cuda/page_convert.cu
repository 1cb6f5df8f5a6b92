// Device side of page_convert.h. A block converts one head of one page: a thread writes a word of the packed page, or bytes of the
// CPU page. Reads are scattered but stay within the page (L1); used when pages are loaded, saved or handed over, not in a step.
#include <string>

#include "kvrazor/error.h"
#include "src/backends/cuda/cpu_side.h"

namespace kvrazor::cuda {
namespace {

constexpr int kThreads = 256;

template <class Words>
__global__ void PackKernel(CpuSide k, CpuSide v, int64_t head_bytes, const uint8_t* k_pages, const uint8_t* v_pages, uint8_t* packed) {
  const int64_t page = blockIdx.x;
  const int head = blockIdx.y;
  uint32_t* out = reinterpret_cast<uint32_t*>(packed + (page * gridDim.y + head) * head_bytes);
  for (int w = threadIdx.x; w < head_bytes / 4; w += kThreads) {
    out[w] = Words::Pack(w, k, v, k_pages + page * k.page_bytes, v_pages + page * v.page_bytes, head);
  }
}

template <class Words>
__global__ void UnpackKernel(CpuSide k, CpuSide v, int64_t head_bytes, int num_heads, const uint8_t* packed, uint8_t* k_pages, uint8_t* v_pages) {
  const int64_t page = blockIdx.x;
  const uint8_t* from = packed + page * num_heads * head_bytes;
  for (int64_t at = threadIdx.x; at < k.page_bytes; at += kThreads) {
    k_pages[page * k.page_bytes + at] = UnpackKeyPageByte<Words>(at, k, num_heads, head_bytes, from);
  }
  for (int64_t at = threadIdx.x; at < v.page_bytes; at += kThreads) {
    v_pages[page * v.page_bytes + at] = UnpackValuePageByte<Words>(at, v, num_heads, head_bytes, from);
  }
}

void CheckLaunch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw Error(std::string("cuda pages: ") + what + " was refused: " + cudaGetErrorString(error));
}

/// One side of plain pages, which lie with strides of their own.
void CopyPages(std::byte* to, size_t to_stride, const std::byte* from, size_t from_stride, size_t bytes, int64_t num_pages, cudaStream_t stream) {
  const cudaError_t error = cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, static_cast<size_t>(num_pages), cudaMemcpyDeviceToDevice, stream);
  if (error != cudaSuccess) throw Error(std::string("cuda pages: a copy was refused: ") + cudaGetErrorString(error));
}

}  // namespace

void PackPagesAsync(const PackedFormat& f, int64_t num_pages, const std::byte* k_pages, const std::byte* v_pages, std::byte* packed,
                    cudaStream_t stream) {
  if (num_pages == 0) return;
  if (f.kind == PageKind::kPlain) {
    const auto k_bytes = static_cast<size_t>(f.layer.k.page_bytes), v_bytes = static_cast<size_t>(f.layer.v.page_bytes);
    CopyPages(packed, k_bytes + v_bytes, k_pages, k_bytes, k_bytes, num_pages, stream);
    CopyPages(packed + k_bytes, k_bytes + v_bytes, v_pages, v_bytes, v_bytes, num_pages, stream);
    return;
  }
  DispatchWords(f, [&](auto words) {
    PackKernel<decltype(words)><<<dim3(static_cast<unsigned>(num_pages), f.num_kv_heads), kThreads, 0, stream>>>(
        MakeCpuSide(f.layer.k), MakeCpuSide(f.layer.v), f.head_bytes, reinterpret_cast<const uint8_t*>(k_pages),
        reinterpret_cast<const uint8_t*>(v_pages), reinterpret_cast<uint8_t*>(packed));
  });
  CheckLaunch("PackPagesAsync");
}

void UnpackPagesAsync(const PackedFormat& f, int64_t num_pages, const std::byte* packed, std::byte* k_pages, std::byte* v_pages,
                      cudaStream_t stream) {
  if (num_pages == 0) return;
  if (f.kind == PageKind::kPlain) {
    const auto k_bytes = static_cast<size_t>(f.layer.k.page_bytes), v_bytes = static_cast<size_t>(f.layer.v.page_bytes);
    CopyPages(k_pages, k_bytes, packed, k_bytes + v_bytes, k_bytes, num_pages, stream);
    CopyPages(v_pages, v_bytes, packed + k_bytes, k_bytes + v_bytes, v_bytes, num_pages, stream);
    return;
  }
  DispatchWords(f, [&](auto words) {
    UnpackKernel<decltype(words)><<<static_cast<unsigned>(num_pages), kThreads, 0, stream>>>(
        MakeCpuSide(f.layer.k), MakeCpuSide(f.layer.v), f.head_bytes, f.num_kv_heads, reinterpret_cast<const uint8_t*>(packed),
        reinterpret_cast<uint8_t*>(k_pages), reinterpret_cast<uint8_t*>(v_pages));
  });
  CheckLaunch("UnpackPagesAsync");
}

}  // namespace kvrazor::cuda

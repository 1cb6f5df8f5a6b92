#include "integrations/ggml/self_test.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml.h"
#include "integrations/ggml/kv_buffer.h"
#include "integrations/ggml/settings.h"
#include "src/core/half.h"

namespace kvrazor::ggml {
namespace {

struct Deleter {
  void operator()(ggml_context* c) const { ggml_free(c); }
  void operator()(ggml_backend* b) const { ggml_backend_free(b); }
  void operator()(ggml_backend_buffer* b) const { ggml_backend_buffer_free(b); }
};
using ContextPtr = std::unique_ptr<ggml_context, Deleter>;
using BackendPtr = std::unique_ptr<ggml_backend, Deleter>;
using BufferPtr = std::unique_ptr<ggml_backend_buffer, Deleter>;

// Ragged on purpose: the new tokens end inside the second page.
constexpr int64_t kHeadDim = 64, kKvHeads = 2, kQoHeads = 4, kSlots = 512, kTokens = 150, kKeys = 256;

ContextPtr NewContext() {
  return ContextPtr(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
}

struct Inputs {
  std::vector<float> k, v, q;
  std::vector<int64_t> slots;
  std::vector<f16_bits> mask;

  Inputs()
      : k(kTokens * kKvHeads * kHeadDim),
        v(k.size()),
        q(kTokens * kQoHeads * kHeadDim),
        slots(kTokens),
        mask(kTokens * kKeys) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (std::vector<float>* values : {&k, &v, &q}) {
      for (float& x : *values) x = normal(random);
    }
    for (int64_t i = 0; i < kTokens; ++i) {
      slots[static_cast<size_t>(i)] = i;
      for (int64_t j = 0; j < kKeys; ++j)
        mask[static_cast<size_t>(i * kKeys + j)] = F16FromF32(j <= i ? 0.0f : -INFINITY);
    }
  }
};

/// Attention of kTokens new tokens through a cache with the given tensor names; false if ggml fails. is_ours: the cache
/// is packed.
bool Compute(ggml_backend_dev_t device, const char* k_name, const char* v_name, const Inputs& in,
             std::vector<float>& out, bool& is_ours) {
  const BackendPtr backend(ggml_backend_dev_init(device, nullptr));
  ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
  const ContextPtr cache_context = NewContext();
  ggml_tensor* k = ggml_new_tensor_3d(cache_context.get(), GGML_TYPE_F16, kKvHeads * kHeadDim, kSlots, 1);
  ggml_tensor* v = ggml_new_tensor_3d(cache_context.get(), GGML_TYPE_F16, kKvHeads * kHeadDim, kSlots, 1);
  ggml_set_name(k, k_name);
  ggml_set_name(v, v_name);
  const BufferPtr cache(ggml_backend_alloc_ctx_tensors_from_buft(cache_context.get(), type));
  if (!backend || !cache) return false;
  // One thread: a team of threads that exists before the host has asked for its instruction set extensions (AMX) may
  // lack them.
  const auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
  if (set_n_threads) set_n_threads(backend.get(), 1);
  ggml_backend_buffer_clear(cache.get(), 0);
  is_ours = IsCacheBuffer(cache.get());

  const ContextPtr context = NewContext();
  ggml_context* c = context.get();
  ggml_tensor* k_new = ggml_new_tensor_2d(c, GGML_TYPE_F32, kKvHeads * kHeadDim, kTokens);
  ggml_tensor* v_new = ggml_new_tensor_2d(c, GGML_TYPE_F32, kKvHeads * kHeadDim, kTokens);
  ggml_tensor* slots = ggml_new_tensor_1d(c, GGML_TYPE_I64, kTokens);
  ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, kHeadDim, kQoHeads, kTokens);
  ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, kKeys, kTokens);
  const auto heads = [&](ggml_tensor* t) {
    const size_t row = t->nb[1];
    return ggml_permute(c, ggml_view_4d(c, t, kHeadDim, kKvHeads, kKeys, 1, kHeadDim * 2, row, row * kSlots, 0), 0, 2,
                        1, 3);
  };
  ggml_cgraph* graph = ggml_new_graph(c);
  ggml_build_forward_expand(graph, ggml_set_rows(c, k, k_new, slots));
  ggml_build_forward_expand(graph, ggml_set_rows(c, v, v_new, slots));
  ggml_tensor* result = ggml_flash_attn_ext(c, ggml_permute(c, q, 0, 2, 1, 3), heads(k), heads(v), mask,
                                            1.0f / std::sqrt(static_cast<float>(kHeadDim)), 0.0f, 0.0f);
  ggml_build_forward_expand(graph, result);
  for (int i = 0; i < ggml_graph_n_nodes(graph); ++i)
    ggml_backend_supports_op(backend.get(), ggml_graph_node(graph, i));
  const BufferPtr buffer(ggml_backend_alloc_ctx_tensors_from_buft(c, type));
  if (!buffer) return false;
  ggml_backend_tensor_set(k_new, in.k.data(), 0, ggml_nbytes(k_new));
  ggml_backend_tensor_set(v_new, in.v.data(), 0, ggml_nbytes(v_new));
  ggml_backend_tensor_set(q, in.q.data(), 0, ggml_nbytes(q));
  ggml_backend_tensor_set(slots, in.slots.data(), 0, ggml_nbytes(slots));
  ggml_backend_tensor_set(mask, in.mask.data(), 0, ggml_nbytes(mask));
  if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) return false;
  out.resize(static_cast<size_t>(ggml_nelements(result)));
  ggml_backend_tensor_get(result, out.data(), 0, ggml_nbytes(result));
  return true;
}

}  // namespace

std::string OffsetProblem(ggml_backend_dev_t device) {
  ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
  const bool same = std::strcmp(device->iface.get_name(device), ggml_backend_dev_name(device)) == 0 &&
                    device->iface.get_buffer_type(device) == type &&
                    device->reg == ggml_backend_dev_backend_reg(device) &&
                    std::strcmp(type->iface.get_name(type), ggml_backend_buft_name(type)) == 0 &&
                    type->iface.get_alignment(type) == ggml_backend_buft_get_alignment(type) &&
                    std::strcmp(device->reg->iface.get_name(device->reg), ggml_backend_reg_name(device->reg)) == 0;
  return same ? ""
              : "self-test: ggml's structures are not laid out as in the headers this library was built with: left "
                "untouched";
}

std::string SelfTestProblem(ggml_backend_dev_t device) {
  const Inputs inputs;
  std::vector<float> want, got;
  bool plain_is_ours = false;
  bool packed_is_ours = false;
  if (!Compute(device, "self_test_k", "self_test_v", inputs, want, plain_is_ours)) {
    return "self-test: ggml's own attention does not run: left untouched";
  }
  Settings f16 = MakeSettings("f16", true);
  f16.quiet = true;
  const ScopedThreadSettings scope(std::move(f16));
  if (!Compute(device, "cache_k_l0", "cache_v_l0", inputs, got, packed_is_ours) || !packed_is_ours || plain_is_ours) {
    return "self-test: the KV cache was not recognized: left untouched";
  }
  // ggml sums values in f16 (u = 2^-11): kTokens independent rounding errors of sums below max |v| = 6. A wrong head,
  // slot or mask is off by about 1.
  const float tolerance = 6 * std::sqrt(static_cast<float>(kTokens)) * 0x1p-11f;
  float worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= worst)) worst = std::fabs(got[i] - want[i]);
  }
  if (worst <= tolerance) return "";
  return "self-test: attention differs from ggml's by " + std::to_string(worst) + " (allowed " +
         std::to_string(tolerance) + "): left untouched";
}

}  // namespace kvrazor::ggml

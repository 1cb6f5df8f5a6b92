#include "integrations/ggml/hook.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "integrations/ggml/allocation.h"
#include "integrations/ggml/counters.h"
#include "integrations/ggml/graph_walk.h"
#include "integrations/ggml/kv_buffer.h"
#include "integrations/ggml/log.h"
#include "integrations/ggml/openmp_executor.h"
#include "integrations/ggml/self_test.h"
#include "integrations/ggml/settings.h"
#include "integrations/ggml/version_guard.h"
#include "src/ops/backend.h"

namespace kvrazor::ggml {
namespace {

/// The patched objects and what was in them.
struct Patched {
  ggml_backend_dev_t device = nullptr;
  ggml_backend_reg_t registry = nullptr;
  ggml_backend_buffer_type_t buffer_type = nullptr;
  ggml_backend_device_i device_original;
  ggml_backend_reg_i registry_original;
  ggml_backend_buffer_type_i buffer_type_original;
  ggml_backend_set_n_threads_t set_n_threads = nullptr;
  bool inner_uses_openmp = false;
};
Patched g_patched;
ggml_backend_buffer_type g_cache_type;  // what KV buffers report as their type: not host memory

/// What we keep for each backend instance (one a llama_context).
struct Instance {
  decltype(ggml_backend_i::graph_compute) graph_compute = nullptr;
  decltype(ggml_backend_i::free) free = nullptr;
  int num_threads = 0;
  std::map<int, std::unique_ptr<Executor>> executors;  // by threads: prompt and decoding may use different numbers

  Executor& CurrentExecutor() {
    std::unique_ptr<Executor>& executor = executors[num_threads];
    if (!executor) executor = MakeInnerExecutor(num_threads, g_patched.inner_uses_openmp);
    return *executor;
  }
};
std::mutex g_instances_mutex;
std::map<ggml_backend_t, std::unique_ptr<Instance>> g_instances;

Instance* FindInstance(ggml_backend_t backend) {
  const std::lock_guard lock(g_instances_mutex);
  const auto it = g_instances.find(backend);
  return it == g_instances.end() ? nullptr : it->second.get();
}

ggml_status ComputeGraph(ggml_backend_t backend, ggml_cgraph* graph) {
  Instance& instance = *FindInstance(backend);
  try {
    return WalkGraph(graph, instance.CurrentExecutor(),
                     [&](ggml_cgraph* part) { return instance.graph_compute(backend, part); });
  } catch (const std::bad_alloc&) {
    LogError("out of memory");
    return GGML_STATUS_ALLOC_FAILED;
  } catch (const std::exception& error) {
    LogError("%s", error.what());
    return GGML_STATUS_FAILED;
  }
}

void FreeBackend(ggml_backend_t backend) {
  std::unique_ptr<Instance> instance;
  {
    const std::lock_guard lock(g_instances_mutex);
    const auto it = g_instances.find(backend);
    instance = std::move(it->second);
    g_instances.erase(it);
  }
  instance->free(backend);
}

ggml_backend_t InitBackend(ggml_backend_dev_t device, const char* params) {
  ggml_backend_t backend = g_patched.device_original.init_backend(device, params);
  if (!backend) return nullptr;
  auto instance = std::make_unique<Instance>();
  instance->graph_compute = backend->iface.graph_compute;
  instance->free = backend->iface.free;
  instance->num_threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, GGML_DEFAULT_N_THREADS);
  backend->iface.graph_compute = ComputeGraph;
  backend->iface.free = FreeBackend;
  backend->iface.graph_plan_create = nullptr;  // a plan would bypass graph_compute; ggml treats it as optional
  const std::lock_guard lock(g_instances_mutex);
  g_instances[backend] = std::move(instance);
  return backend;
}

void SetNumThreads(ggml_backend_t backend, int num_threads) {
  if (Instance* instance = FindInstance(backend)) instance->num_threads = std::max(1, num_threads);
  g_patched.set_n_threads(backend, num_threads);
}

void* GetProcAddress(ggml_backend_reg_t registry, const char* name) {
  void* original = g_patched.registry_original.get_proc_address(registry, name);
  if (original && std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(SetNumThreads);
  return original;
}

bool SupportsOp(ggml_backend_dev_t device, const ggml_tensor* node) {
  InspectNode(node);
  return g_patched.device_original.supports_op(device, node);
}

bool SupportsBufferType(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
  return type == &g_cache_type || g_patched.device_original.supports_buft(device, type);
}

size_t GetAllocSize(ggml_backend_buffer_type_t type, const ggml_tensor* tensor) {
  const auto original = g_patched.buffer_type_original.get_alloc_size;
  const size_t bytes = original ? original(type, tensor) : ggml_nbytes(tensor);
  return NoteAllocSize(tensor, bytes, type->iface.get_alignment(type));
}

ggml_backend_buffer_t AllocBuffer(ggml_backend_buffer_type_t, size_t bytes) {
  const AllocationVerdict verdict = JudgeAllocation(bytes);
  std::string refusal;
  std::swap(refusal, PendingRefusal());
  if (verdict.is_cache) refusal = verdict.refusal;
  if (!refusal.empty()) {
    Count(GlobalCounters().refused_contexts);
    LogError(
        "%s; KVRAZOR_REQUIRE (--require) forbids that: no context is created. Use recipe f16 or off for this model, or "
        "drop the "
        "option that keeps the layer from being packed",
        refusal.c_str());
    return nullptr;
  }
  if (verdict.recipe_is_bad) {
    LogError("NOT PACKED: this KV cache is llama.cpp's own, because KVRAZOR_RECIPE could not be read: %s",
             CurrentSettings()->error.c_str());
  }
  if (verdict.num_recurrent > 0 && CurrentSettings()->recipe) {
    LogInfo("%d layers keep a recurrent state, which does not grow with the context: it stays as llama.cpp stores it",
            verdict.num_recurrent);
  }
  if (verdict.is_cache) return NewCacheBuffer(&g_cache_type, CpuBackend(), bytes);
  return g_patched.buffer_type_original.alloc_buffer(g_patched.buffer_type, bytes);
}

bool InnerUsesOpenMp(ggml_backend_reg_t registry) {
  const auto get = reinterpret_cast<ggml_backend_get_features_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_get_features"));
  if (!get) return false;
  for (const ggml_backend_feature* f = get(registry); f && f->name; ++f) {
    if (std::strcmp(f->name, "OPENMP") == 0) return true;
  }
  return false;
}

void Patch(ggml_backend_dev_t device) {
  Patched& p = g_patched;
  p.device = device;
  p.registry = ggml_backend_dev_backend_reg(device);
  p.buffer_type = ggml_backend_dev_buffer_type(device);
  p.device_original = device->iface;
  p.registry_original = p.registry->iface;
  p.buffer_type_original = p.buffer_type->iface;
  p.inner_uses_openmp = InnerUsesOpenMp(p.registry);
  p.set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
      p.registry_original.get_proc_address(p.registry, "ggml_backend_set_n_threads"));

  g_cache_type = *p.buffer_type;
  g_cache_type.iface.get_name = [](ggml_backend_buffer_type_t) { return "KVRAZOR"; };
  g_cache_type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
  g_cache_type.iface.get_alloc_size = GetAllocSize;
  g_cache_type.iface.alloc_buffer = AllocBuffer;

  p.buffer_type->iface.get_alloc_size = GetAllocSize;
  p.buffer_type->iface.alloc_buffer = AllocBuffer;
  p.registry->iface.get_proc_address = GetProcAddress;
  device->iface.init_backend = InitBackend;
  device->iface.supports_op = SupportsOp;
  device->iface.supports_buft = SupportsBufferType;
}

void Unpatch() {
  g_patched.device->iface = g_patched.device_original;
  g_patched.registry->iface = g_patched.registry_original;
  g_patched.buffer_type->iface = g_patched.buffer_type_original;
}

std::string Attach() {
  if (std::string problem = VersionProblem(BuiltForGgml(), RunningGgml()); !problem.empty()) return problem;
  ggml_backend_reg_t registry = ggml_backend_reg_by_name("CPU");
  if (!registry || ggml_backend_reg_dev_count(registry) == 0) {
    return "no CPU device is registered (yet); load ggml's own backends first";
  }
  ggml_backend_dev_t device = ggml_backend_reg_dev_get(registry, 0);
  if (std::string problem = OffsetProblem(device); !problem.empty()) return problem;
  Patch(device);
  if (std::string problem = SelfTestProblem(device); !problem.empty()) {
    Unpatch();
    return problem;
  }
  LogInfo("attached to device %s of ggml %s, kernels: %s", ggml_backend_dev_name(device), ggml_version(),
          CpuBackend().description().c_str());
  return "";
}

}  // namespace

const std::string& AttachToCpuDevice() {
  static const std::string problem = Attach();
  return problem;
}

}  // namespace kvrazor::ggml

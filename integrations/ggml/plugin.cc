// The entry point that ggml looks for in a library that it loads (GGML_BACKEND_PATH, ggml_backend_load).
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "ggml-backend-impl.h"
#include "integrations/ggml/explain.h"
#include "integrations/ggml/hook.h"
#include "integrations/ggml/log.h"
#include "integrations/ggml/settings.h"

namespace kvrazor::ggml {
namespace {

/// What a stock program gets when KVRAZOR_RECIPE is not set.
constexpr char kDefaultRecipe[] = "razor-2";

void* NoProcAddress(ggml_backend_reg_t, const char*) { return nullptr; }

/// A registry without devices: everything happens in the device that is already there.
ggml_backend_reg g_registry = {
    .api_version = GGML_BACKEND_API_VERSION,
    .iface = {
        .get_name = [](ggml_backend_reg_t) { return "kvrazor"; },
        .get_device_count = [](ggml_backend_reg_t) -> size_t { return 0; },
        .get_device = [](ggml_backend_reg_t, size_t) -> ggml_backend_dev_t { return nullptr; },
        .get_proc_address = NoProcAddress,
    },
    .context = nullptr,
};

void StartFromEnvironment() {
  if (const std::string& problem = AttachToCpuDevice(); !problem.empty()) {
    LogWarning("not attached: %s", problem.c_str());
    return;
  }
  Settings settings = SettingsFromEnvironment(kDefaultRecipe);
  if (!settings.error.empty()) {
    LogError("KVRAZOR_RECIPE: %s", settings.error.c_str());
    LogError("%s", settings.require
                       ? "NOTHING RUNS: no context will be created (KVRAZOR_REQUIRE)."
                       : "NOTHING IS PACKED: every KV cache of this program is llama.cpp's own, in 16 bits or the "
                         "-ctk/-ctv type. KVRAZOR_REQUIRE=1 makes this an error.");
  } else if (settings.recipe) {
    LogInfo("recipe %s%s", ToText(*settings.recipe).c_str(), settings.require ? ", required for every layer" : "");
  }
  SetSettings(std::move(settings));
  if (const char* stats = std::getenv("KVRAZOR_STATS"); stats && std::atoi(stats) > 0) {
    std::atexit([] { std::fprintf(stderr, "kvrazor: %s\n", StatsLine().c_str()); });
  }
}

}  // namespace
}  // namespace kvrazor::ggml

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
  static std::once_flag once;
  std::call_once(once, kvrazor::ggml::StartFromEnvironment);
  return &kvrazor::ggml::g_registry;
}

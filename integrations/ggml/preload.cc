// For LD_PRELOAD: attaches in programs whose ggml never looks at GGML_BACKEND_PATH. Depends on nothing of ggml, because
// the search path of the program does not hold for preloaded libraries and because children of the program that do not
// use ggml load it too.
#include <dlfcn.h>

#include <string>

namespace {

using Register = void (*)(void* registry);
using Init = void* (*)();

/// libggml-kvrazor.so beside this file: its own dependencies on ggml are met by what the program has loaded.
std::string PluginPath() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(PluginPath), &info) || !info.dli_fname) return "";
  const std::string self = info.dli_fname;
  return self.substr(0, self.rfind('/') + 1) + "libggml-kvrazor.so";
}

__attribute__((constructor)) void Attach() {
  const auto add = reinterpret_cast<Register>(dlsym(RTLD_DEFAULT, "ggml_backend_register"));
  if (!add) return;  // not a program that uses ggml, or one that loads it later
  void* plugin = dlopen(PluginPath().c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto init = plugin ? reinterpret_cast<Init>(dlsym(plugin, "ggml_backend_init")) : nullptr;
  if (init) add(init());
}

}  // namespace

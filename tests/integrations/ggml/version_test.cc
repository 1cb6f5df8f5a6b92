// A plug-in built for another ggml leaves the host as it is and says why. Needs no model.
#include <gtest/gtest.h>

#include <string>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

namespace {

std::string& Log() {
  static std::string log;
  return log;
}

/// Name of the buffer type that a KV cache tensor ends up in.
std::string CacheBufferName() {
  ggml_context* context = ggml_init({4 * ggml_tensor_overhead(), nullptr, true});
  for (const char* name : {"cache_k_l0", "cache_v_l0"}) {
    ggml_set_name(ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 1024, 1), name);
  }
  ggml_backend_buffer_type_t type =
      ggml_backend_dev_buffer_type(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
  ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, type);
  const std::string name = ggml_backend_buffer_name(buffer);
  ggml_backend_buffer_free(buffer);
  ggml_free(context);
  return name;
}

TEST(VersionGuard, AnotherVersionLeavesTheHostUntouchedAndSaysWhy) {
  ggml_log_set([](ggml_log_level, const char* text, void*) { Log() += text; }, nullptr);
  ASSERT_EQ(CacheBufferName(), "CPU");
  const size_t devices = ggml_backend_dev_count();
  ASSERT_TRUE(ggml_backend_load(KVRAZOR_OTHER_VERSION_LIBRARY)) << "the library itself must load";
  EXPECT_NE(Log().find("built for ggml 0.0.1"), std::string::npos) << Log();
  EXPECT_NE(Log().find(ggml_version()), std::string::npos) << Log();
  EXPECT_EQ(CacheBufferName(), "CPU");
  EXPECT_EQ(ggml_backend_dev_count(), devices);
}

TEST(VersionGuard, TheRightVersionAttachesOnceHoweverOftenItIsLoaded) {
  ggml_log_set([](ggml_log_level, const char* text, void*) { Log() += text; }, nullptr);
  const size_t devices = ggml_backend_dev_count();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(ggml_backend_load(KVRAZOR_LIBRARY));
  EXPECT_EQ(CacheBufferName(), "KVRAZOR");
  EXPECT_EQ(ggml_backend_dev_count(), devices);
}

}  // namespace

#include "src/c_api/guard.h"

#include <array>
#include <cstring>
#include <string>

#include "kvrazor/recipe.h"
#include "kvrazor/version.h"

namespace kvrazor::c_api {
namespace {

thread_local std::array<char, 2048> last_error{};

template <typename ViewType>
ViewType MakeView(const kvrazor_tensor* tensor, const char* name) {
  const kvrazor_tensor& t = Required(tensor, name);
  const Dtype dtype{t.dtype};  // an unknown one is refused where the view is used
  if (t.token_stride == 0 && t.head_stride == 0) return {t.data, dtype, t.num_tokens, t.num_heads, t.head_dim};
  return {t.data, dtype, t.num_tokens, t.num_heads, t.head_dim, t.token_stride, t.head_stride};
}

}  // namespace

void SetLastError(const char* text) noexcept {
  std::strncpy(last_error.data(), text, last_error.size() - 1);
  last_error.back() = 0;
}

Executor& ExecutorOf(kvrazor_threads* threads) { return threads != nullptr ? *threads->executor : SerialExecutor(); }
TensorView View(const kvrazor_tensor* tensor, const char* name) { return MakeView<TensorView>(tensor, name); }
MutableTensorView MutableView(const kvrazor_tensor* tensor, const char* name) {
  return MakeView<MutableTensorView>(tensor, name);
}

}  // namespace kvrazor::c_api

using namespace kvrazor;
using namespace kvrazor::c_api;

const char* kvrazor_version(void) { return Version(); }
const char* kvrazor_last_error(void) { return last_error.data(); }

int kvrazor_recipe_text(const char* recipe, char* text, size_t size, size_t* length) {
  return Guard([&] {
    const std::string shortest = ToText(ParseRecipe(&Required(recipe, "recipe")));
    if (length != nullptr) *length = shortest.size();
    if (text == nullptr || size == 0) return KVRAZOR_OK;
    text[shortest.copy(text, size - 1)] = 0;
    return KVRAZOR_OK;
  });
}

int kvrazor_threads_create(int num_threads, kvrazor_threads** threads) {
  return Guard([&] {
    Required(threads, "threads") = new kvrazor_threads{MakeThreadPool(num_threads)};
    return KVRAZOR_OK;
  });
}

void kvrazor_threads_destroy(kvrazor_threads* threads) { delete threads; }

// What every function of the C API does: no exception out, the reason kept for kvrazor_last_error.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <string>

#include "kvrazor/c_api.h"
#include "kvrazor/error.h"
#include "kvrazor/executor.h"
#include "kvrazor/tensor.h"

struct kvrazor_threads {
  std::unique_ptr<kvrazor::Executor> executor;
};

namespace kvrazor::c_api {

/// Keeps the text for this thread, cut if it is very long.
void SetLastError(const char* text) noexcept;

/// Runs fn, which returns a KVRAZOR_ status.
template <typename Fn>
int Guard(Fn fn) noexcept {
  try {
    return fn();
  } catch (const std::bad_alloc&) {
    SetLastError("kvrazor: out of memory");
    return KVRAZOR_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    SetLastError(error.what());
  } catch (...) {
    SetLastError("kvrazor: unknown error");
  }
  return KVRAZOR_ERROR;
}

/// The object behind a pointer; throws Error, naming it, for NULL.
template <typename T>
T& Required(T* pointer, const char* name) {
  if (pointer == nullptr) throw Error(std::string("kvrazor: ") + name + " is NULL; it must be given.");
  return *pointer;
}

Executor& ExecutorOf(kvrazor_threads* threads);
TensorView View(const kvrazor_tensor* tensor, const char* name);
MutableTensorView MutableView(const kvrazor_tensor* tensor, const char* name);

}  // namespace kvrazor::c_api

#include "integrations/ggml/openmp_executor.h"

#include <atomic>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kvrazor::ggml {
namespace {

#ifdef _OPENMP
class OpenMpExecutor : public Executor {
 public:
  explicit OpenMpExecutor(int num_threads) : num_threads_(num_threads) {}

  int num_threads() const override { return num_threads_; }

  void Run(int64_t num_tasks, const std::function<void(int64_t, int)>& fn) override {
    if (num_tasks <= 1 || num_threads_ == 1) {
      for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr exception;
#pragma omp parallel num_threads(num_threads_)
    {
      const int thread = omp_get_thread_num();
      for (int64_t task = next++; task < num_tasks; task = next++) {
        try {
          fn(task, thread);
        } catch (...) {
          if (!failed.test_and_set()) exception = std::current_exception();
        }
      }
    }
    if (exception) std::rethrow_exception(exception);
  }

 private:
  int num_threads_;
};
#endif

}  // namespace

std::unique_ptr<Executor> MakeInnerExecutor(int num_threads, bool inner_uses_openmp) {
#ifdef _OPENMP
  if (inner_uses_openmp) return std::make_unique<OpenMpExecutor>(num_threads);
#endif
  return MakeThreadPool(num_threads);
}

}  // namespace kvrazor::ggml

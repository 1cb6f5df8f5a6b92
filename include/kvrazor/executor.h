// Threads are the caller's: every op that can use several takes an Executor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace kvrazor {

/// Runs independent tasks, on the caller's thread and any others it owns.
class Executor {
 public:
  virtual ~Executor() = default;

  /// Threads that Run may use at once, the caller's included; >= 1.
  virtual int num_threads() const = 0;

  /// Calls fn(task, thread) once for each task in [0, num_tasks), in any order, thread in [0, num_threads()); two calls
  /// with the same thread index never overlap, so `thread` may index scratch memory. Returns when all have returned.
  /// An exception from fn is rethrown here after the others have finished.
  virtual void Run(int64_t num_tasks, const std::function<void(int64_t task, int thread)>& fn) = 0;
};

/// The caller's thread alone.
Executor& SerialExecutor();

/// A pool of num_threads - 1 sleeping threads beside the caller's.
std::unique_ptr<Executor> MakeThreadPool(int num_threads);

}  // namespace kvrazor

// A thread pool for work of tens of microseconds: one decode step calls Run several times a layer, so what counts is the
// time to the first task. Sleepers spin briefly before they wait on a futex, the caller works along and never waits for a
// thread that has not started, and tasks are handed out by one atomic counter.
//
//   gate_ (32 bits)  | open : 1 | threads inside : 31 |
//
// The caller writes the job, opens the gate and bumps epoch_. A worker enters only through an open gate (one CAS), so a late
// riser finds it shut and goes back to sleep. The caller shuts the gate when no task is left and waits for those inside.
#include "kvrazor/executor.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kvrazor/error.h"

namespace kvrazor {
namespace {

constexpr int kMaxThreads = 4096;
constexpr uint32_t kOpen = uint32_t{1} << 31;
constexpr int kSpins = 512;  // of one pause each: 10 to 40 us, about what a futex wake-up costs

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns when `word` no longer holds `old`.
void WaitWhileEqual(const std::atomic<uint32_t>& word, uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (word.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  word.wait(old, std::memory_order_acquire);
}

class Serial final : public Executor {
 public:
  int num_threads() const override { return 1; }

  void Run(int64_t num_tasks, const std::function<void(int64_t, int)>& fn) override {
    std::exception_ptr error;
    for (int64_t task = 0; task < num_tasks; ++task) {
      try {
        fn(task, 0);
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
  }
};

class ThreadPool;

/// The Run calls that this thread is inside of, innermost first: a nested Run must neither wait for itself nor take another
/// thread's index.
struct Frame {
  const ThreadPool* pool;
  int thread;
  const Frame* outer;
};
thread_local const Frame* innermost_frame = nullptr;

class EnterFrame {
 public:
  EnterFrame(const ThreadPool* pool, int thread) : frame_{pool, thread, innermost_frame} { innermost_frame = &frame_; }
  ~EnterFrame() { innermost_frame = frame_.outer; }
  EnterFrame(const EnterFrame&) = delete;
  EnterFrame& operator=(const EnterFrame&) = delete;

 private:
  Frame frame_;
};

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads) {
    // More threads than cores: whoever spins keeps a working thread from its core.
    spins_ = num_threads <= static_cast<int>(std::thread::hardware_concurrency()) ? kSpins : 0;
    workers_.reserve(num_threads - 1);
    try {
      for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { Work(thread); });
    } catch (const std::system_error& error) {
      const size_t started = workers_.size() + 1;
      Stop();
      throw Error("thread pool: the system refused thread " + std::to_string(started + 1) + " of " +
                  std::to_string(num_threads) + " (" + error.what() + "). Ask for at most " + std::to_string(started) +
                  " threads, or raise the limit (ulimit -u, the container's pids limit).");
    }
  }

  ~ThreadPool() override { Stop(); }

  int num_threads() const override { return static_cast<int>(workers_.size()) + 1; }

  void Run(int64_t num_tasks, const std::function<void(int64_t, int)>& fn) override {
    if (num_tasks <= 0) return;
    for (const Frame* frame = innermost_frame; frame; frame = frame->outer) {
      if (frame->pool == this) return RunNested(num_tasks, fn, frame->thread);
    }
    const std::lock_guard<std::mutex> one_caller_at_a_time(callers_);
    fn_ = &fn;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    error_ = nullptr;
    const bool shared = num_tasks > 1 && !workers_.empty();
    if (shared) OpenGate();
    TakeTasks(/*thread=*/0);
    if (shared) ShutGate();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void OpenGate() {
    gate_.store(kOpen, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }

  void ShutGate() {
    uint32_t inside = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
    while (inside != 0) {
      WaitWhileEqual(gate_, inside, spins_);
      inside = gate_.load(std::memory_order_acquire);
    }
  }

  bool Enter() {
    uint32_t gate = gate_.load(std::memory_order_relaxed);
    while (gate & kOpen) {
      if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed))
        return true;
    }
    return false;
  }

  void Leave() {
    // Shut and nobody else inside: the caller may be asleep.
    if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_one();
  }

  void Work(int thread) {
    uint32_t seen = 0;
    while (true) {
      WaitWhileEqual(epoch_, seen, spins_);
      seen = epoch_.load(std::memory_order_acquire);
      if (stop_.load(std::memory_order_acquire)) return;
      if (!Enter()) continue;
      TakeTasks(thread);
      Leave();
    }
  }

  void TakeTasks(int thread) {
    const EnterFrame frame(this, thread);
    const std::function<void(int64_t, int)>& fn = *fn_;
    const int64_t num_tasks = num_tasks_;
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
      try {
        fn(task, thread);
      } catch (...) {
        if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
      }
    }
  }

  /// Called from inside a task: the other threads are busy with its siblings, so this thread does it alone, under its index.
  void RunNested(int64_t num_tasks, const std::function<void(int64_t, int)>& fn, int thread) {
    SerialExecutor().Run(num_tasks, [&](int64_t task, int) { fn(task, thread); });
  }

  void Stop() {
    stop_.store(true, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  std::mutex callers_;

  // The job: written by the caller while the gate is shut and nobody is inside.
  const std::function<void(int64_t, int)>* fn_ = nullptr;
  int64_t num_tasks_ = 0;
  std::exception_ptr error_;  // written by whoever set failed_ first, read by the caller when everybody has left
  std::atomic<bool> failed_{false};

  // Each on a cache line of its own: spinning threads read epoch_, working ones write next_.
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> gate_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};

  int spins_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace

Executor& SerialExecutor() {
  static Serial serial;
  return serial;
}

std::unique_ptr<Executor> MakeThreadPool(int num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads) {
    throw Error("thread pool: asked for " + std::to_string(num_threads) + " threads; possible are 1 to " +
                std::to_string(kMaxThreads) + ". The machine has " +
                std::to_string(std::max(1u, std::thread::hardware_concurrency())) + " hardware threads.");
  }
  return std::make_unique<ThreadPool>(num_threads);
}

}  // namespace kvrazor

#include "kvrazor/executor.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvrazor/error.h"

namespace kvrazor {
namespace {

using ::testing::Each;
using ::testing::Eq;
using ::testing::HasSubstr;

/// One executor a case: 0 stands for SerialExecutor(), n for a pool of n.
class ExecutorTest : public ::testing::TestWithParam<int> {
 protected:
  ExecutorTest() {
    if (GetParam() > 0) pool_ = MakeThreadPool(GetParam());
  }

  Executor& executor() { return pool_ ? *pool_ : SerialExecutor(); }
  int num_threads() const { return std::max(1, GetParam()); }

 private:
  std::unique_ptr<Executor> pool_;
};

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest, ::testing::Values(0, 1, 2, 3, 8, 33), ::testing::PrintToStringParamName());

TEST_P(ExecutorTest, SaysHowManyThreads) { EXPECT_EQ(executor().num_threads(), num_threads()); }

TEST_P(ExecutorTest, RunsEveryTaskOnce) {
  for (const int64_t num_tasks : {0, 1, 2, 3, 7, 8, 9, 100, 5000}) {
    std::vector<int> calls(num_tasks, 0);  // plain ints: a task run twice at once is also a race that TSan sees
    executor().Run(num_tasks, [&](int64_t task, int) { ++calls[task]; });
    EXPECT_THAT(calls, Each(Eq(1))) << num_tasks << " tasks";
  }
}

TEST_P(ExecutorTest, NegativeNumberOfTasksIsNone) {
  executor().Run(-1, [](int64_t, int) { FAIL() << "no task to run"; });
}

TEST_P(ExecutorTest, WritesAreVisibleToTheCaller) {
  std::vector<int64_t> values(300, 0);
  for (int round = 1; round <= 500; ++round) {
    executor().Run(300, [&](int64_t task, int) { values[task] += task; });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), round * int64_t{299} * 150);
  }
}

TEST_P(ExecutorTest, CallsWithTheSameThreadIndexDoNotOverlap) {
  std::vector<std::atomic<int>> inside(num_threads());
  std::atomic<int> overlaps{0};
  std::atomic<int> out_of_range{0};
  executor().Run(2000, [&](int64_t, int thread) {
    if (thread < 0 || thread >= num_threads()) {
      ++out_of_range;
      return;
    }
    overlaps += inside[thread].fetch_add(1);
    std::this_thread::yield();
    inside[thread].fetch_sub(1);
  });
  EXPECT_EQ(overlaps, 0);
  EXPECT_EQ(out_of_range, 0);
}

TEST_P(ExecutorTest, RethrowsAfterTheOthersHaveFinished) {
  std::atomic<int> calls{0};
  const auto run = [&] {
    executor().Run(200, [&](int64_t task, int) {
      ++calls;
      if (task == 17) throw std::runtime_error("task 17");
    });
  };
  EXPECT_THROW(
      {
        try {
          run();
        } catch (const std::runtime_error& error) {
          EXPECT_STREQ(error.what(), "task 17");
          throw;
        }
      },
      std::runtime_error);
  EXPECT_EQ(calls, 200);
}

TEST_P(ExecutorTest, WorksAfterAnException) {
  for (int round = 0; round < 100; ++round) {
    EXPECT_THROW(executor().Run(8, [](int64_t, int) { throw std::logic_error("every task"); }), std::logic_error);
    std::atomic<int> calls{0};
    executor().Run(8, [&](int64_t, int) { ++calls; });
    ASSERT_EQ(calls, 8);
  }
}

TEST_P(ExecutorTest, NestedRunIsDoneByTheSameThread) {
  std::atomic<int> calls{0};
  std::atomic<int> wrong_thread{0};
  executor().Run(20, [&](int64_t, int outer) {
    const std::thread::id self = std::this_thread::get_id();
    executor().Run(10, [&](int64_t, int inner) {
      ++calls;
      if (inner != outer || std::this_thread::get_id() != self) ++wrong_thread;
    });
  });
  EXPECT_EQ(calls, 200);
  EXPECT_EQ(wrong_thread, 0);
}

TEST_P(ExecutorTest, NestedRunPassesExceptionsOn) {
  EXPECT_THROW(executor().Run(4, [&](int64_t, int) { executor().Run(4, [](int64_t, int) { throw Error("inner"); }); }),
               Error);
}

TEST(ThreadPoolTest, CallersTakeTurns) {
  constexpr int kCallers = 6, kRounds = 300, kTasks = 16;
  const std::unique_ptr<Executor> pool = MakeThreadPool(3);
  std::vector<std::atomic<int>> inside(3);
  std::atomic<int> overlaps{0};
  std::atomic<int64_t> calls{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        pool->Run(kTasks, [&](int64_t, int thread) {
          overlaps += inside[thread].fetch_add(1);
          ++calls;
          inside[thread].fetch_sub(1);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(calls, int64_t{kCallers} * kRounds * kTasks);
  EXPECT_EQ(overlaps, 0);
}

TEST(ThreadPoolTest, UsesItsThreads) {
  // Each task waits for the other: they can only both return when two threads run them.
  const std::unique_ptr<Executor> pool = MakeThreadPool(2);
  std::atomic<int> arrived{0};
  std::vector<int> thread_of_task(2, -1);
  pool->Run(2, [&](int64_t task, int thread) {
    thread_of_task[task] = thread;
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_THAT(thread_of_task, ::testing::UnorderedElementsAre(0, 1));
}

TEST(ThreadPoolTest, PoolInsideAnotherPoolsTask) {
  const std::unique_ptr<Executor> outer = MakeThreadPool(2);
  const std::unique_ptr<Executor> inner = MakeThreadPool(3);
  std::atomic<int> calls{0};
  outer->Run(6, [&](int64_t, int) { inner->Run(5, [&](int64_t, int) { ++calls; }); });
  EXPECT_EQ(calls, 30);
}

TEST(ThreadPoolTest, StartsAndStops) {
  for (int i = 0; i < 200; ++i) {
    const std::unique_ptr<Executor> pool = MakeThreadPool(1 + i % 5);
    int64_t done = 0;
    if (i % 3 == 0) pool->Run(1, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, i % 3 == 0 ? 1 : 0);
  }
}

TEST(ThreadPoolTest, RefusesImpossibleSizes) {
  for (const int num_threads : {0, -3, 1 << 20}) {
    try {
      MakeThreadPool(num_threads);
      ADD_FAILURE() << "accepted " << num_threads;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("asked for " + std::to_string(num_threads)));
      EXPECT_THAT(error.what(), HasSubstr("possible are 1 to"));
    }
  }
}

}  // namespace
}  // namespace kvrazor

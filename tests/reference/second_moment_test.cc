#include "reference/second_moment.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "reference/backend.h"

namespace kvrazor::reference {
namespace {

// Channel 0 times 8 rotates into 64 ones, channel 1 into alternating signs.
TEST(QueryMoment, ByHand) {
  const int dim = 64;
  std::vector<float> q(5 * 4 * dim, 0.0f);  // 5 tokens, 4 query heads of 2 kv heads
  for (int t = 0; t < 5; ++t) {
    q[(t * 4 + 0) * dim] = 8;
    q[(t * 4 + 1) * dim + 1] = 8;
    q[(t * 4 + 3) * dim] = 16;
  }
  const QueryRows rows = {.data = q.data(), .token_stride = 4 * dim, .head_stride = dim};
  SecondMoment moment({2, dim});
  ReferenceBackend().AddQueries(moment, rows, 5, 4, 2);  // tokens 0, 2, 4
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j < dim; ++j) {  // correlations of 1 and 0, which 16 bits hold exactly
      EXPECT_NEAR(moment.Square(0)[i * dim + j], (i + j) % 2 == 0 ? 6 : 0, 1e-5);
      EXPECT_NEAR(moment.Square(1)[i * dim + j], 12, 1e-5);
    }
  }
  EXPECT_FALSE(moment.empty());
  EXPECT_EQ(moment.count(), 6);                    // of each kv head, zero queries too
  q[4] = std::numeric_limits<float>::quiet_NaN();  // token 0, head 0 is left out
  ReferenceBackend().AddQueries(moment, rows, 5, 4, 2);
  EXPECT_EQ(moment.Square(1)[0], 24);
  EXPECT_EQ(moment.Square(0)[0], 11);
  EXPECT_EQ(moment.count(), 12);  // kv head 1 got all of its 6 again
}

}  // namespace
}  // namespace kvrazor::reference

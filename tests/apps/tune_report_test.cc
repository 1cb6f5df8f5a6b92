// What `kvrazor tune` says of a result, from made measurements.
#include <gmock/gmock.h>

#include <cmath>

#include "apps/tune.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

using ::testing::HasSubstr;

Json Window(const std::string& cache, int64_t window, std::vector<double> kld) {
  return {{"cache", cache}, {"window", window}, {"kld", kld}};
}

Json Candidate(const std::string& recipe, double bits, double kld) {
  return {{"recipe", recipe}, {"bits", bits}, {"kld_mean", kld}};
}

TEST(TuneReportTest, DifferencesArePaired) {
  // Windows in another order; differences 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3.
  const std::vector<Json> measured = {Window("a", 0, {2, 4}), Window("b", 1, {10, 10}), Window("a", 1, {13, 16}),
                                      Window("b", 0, {1, 2})};
  const PairedLoss loss = CompareLosses(measured, "a", "b");
  EXPECT_DOUBLE_EQ(loss.mean, 3);
  EXPECT_DOUBLE_EQ(loss.standard_error, std::sqrt(14.0 / 3 / 4));
  EXPECT_DOUBLE_EQ(CompareLosses(measured, "b", "a").mean, -3);
  EXPECT_THROW(CompareLosses(measured, "a", "c"), Error);
  EXPECT_THROW(CompareLosses({Window("a", 0, {1}), Window("b", 1, {1})}, "a", "b"), Error);
  EXPECT_THROW(CompareLosses({Window("a", 0, {1}), Window("b", 0, {1, 2})}, "a", "b"), Error);
}

struct Case {
  std::vector<double> tuned;
  const char* verdict;
  const char* says;
};

TEST(TuneReportTest, SaysWhatWasGained) {
  const std::vector<double> dearer = {1.0, 1.1, 0.9, 1.0}, cheaper = {0.5, 0.5, 0.5, 0.5};
  for (const Case& c : {Case{{0.8, 0.9, 0.7, 0.8}, "gained", "Gained over dearer (2.600 bits)"},
                        Case{{0.6, 1.3, 0.8, 1.2}, "unclear", "No gain"},
                        Case{{1.3, 1.4, 1.2, 1.3}, "nothing", "Nothing gained: dearer"}}) {
    const std::vector<Json> measured = {Window("tuned", 2, c.tuned), Window("dearer", 2, dearer),
                                        Window("cheaper", 2, cheaper)};
    double mean = 0;
    for (const double kld : c.tuned) mean += kld / 4;
    // `cheaper` has fewer bits: it is no rival, but it is within the budget and better, so it is the one to use.
    const Json candidates = {Candidate("tuned", 2.5, mean), Candidate("dearer", 2.6, 1),
                             Candidate("cheaper", 2.3, 0.5)};
    const Json gain = Gain(measured, "tuned", candidates, 2.5);
    EXPECT_EQ(gain.at("verdict"), c.verdict);
    EXPECT_EQ(gain.at("over"), "dearer");
    EXPECT_NEAR(gain.at("gain"), 1 - mean, 1e-12);
    EXPECT_EQ(gain.at("use"), "cheaper");
    const std::string text = TuneVerdict({{"gain", gain}, {"bits", 2.5}, {"bits_asked", 2.5}, {"tuned", "tuned"}});
    EXPECT_THAT(text, HasSubstr(c.says));
    EXPECT_THAT(text, HasSubstr("uniform recipe cheaper has less"));
  }
}

TEST(TuneReportTest, WithoutADearerRivalTheBestIsTheRival) {
  const std::vector<Json> measured = {Window("tuned", 0, {0.1, 0.1}), Window("a", 0, {0.3, 0.3}),
                                      Window("b", 0, {0.2, 0.2})};
  const Json gain =
      Gain(measured, "tuned", {Candidate("tuned", 4, 0.1), Candidate("a", 3, 0.3), Candidate("b", 2, 0.2)}, 4);
  EXPECT_EQ(gain.at("over"), "b");
  EXPECT_EQ(gain.at("use"), "tuned");
  EXPECT_DOUBLE_EQ(gain.at("gain"), 0.5);
  EXPECT_FALSE(Gain(measured, "tuned", Json::array({Candidate("tuned", 4, 0.1)}), 4).contains("over"));
  EXPECT_THROW(Gain(measured, "tuned", Json::array({Candidate("a", 3, 0.3)}), 4), Error);
}

}  // namespace
}  // namespace kvrazor::apps

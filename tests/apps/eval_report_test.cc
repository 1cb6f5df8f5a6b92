// Reports of `kvrazor eval` from made measurements: sums by hand, and pages that hold what they should.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "apps/eval.h"
#include "apps/eval_accuracy.h"
#include "apps/eval_answers.h"
#include "apps/failures.h"
#include "apps/html.h"

namespace kvrazor::apps {
namespace {

Json Measurement(const std::string& cache, int64_t window, std::vector<double> nll, std::vector<double> kld) {
  Json m = {{"window", window},
            {"start", window * 2000},
            {"cache", cache},
            {"mode", cache == "f16" ? "llama.cpp" : "packed"},
            {"page_bits_per_value", 2.25},
            {"bits_per_value", 4.0 + 2.0 * static_cast<double>(window)},
            {"f16_layers", 0}};
  for (size_t i = 0; i < nll.size(); ++i) m["position"].push_back(300 + 1000 * i);
  m["nll"] = nll;
  m["kld"] = kld;
  m["same"] = std::vector<int>(nll.size(), 1);
  m["same"][0] = 0;
  return m;
}

Json MadeReport() {
  Json report = {{"evaluation", "kld"}, {"model", "folder/<model>.gguf"},
                 {"text", "a&b.txt"},   {"reference", "f16"},
                 {"window", 2000},      {"windows", 2},
                 {"first", 300},        {"step", 1000},
                 {"threads", 2},        {"machine", "m"},
                 {"commit", "c"},       {"command", "kvrazor eval kld"}};
  report["results"] =
      SummarizeAccuracy({"f16", "razor-2"},
                        {Measurement("razor-2", 0, {1, 2}, {0.5, 0.25}), Measurement("f16", 0, {1, 1}, {0, 0}),
                         Measurement("f16", 1, {1, 1}, {0, 0}), Measurement("razor-2", 1, {2, 3}, {0, 0.25})},
                        2, true);
  return report;
}

TEST(EvalReportTest, SumsOverWindowsAndBuckets) {
  const Json results = MadeReport().at("results");
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].at("recipe"), "f16");
  const Json& r = results[1];
  EXPECT_EQ(r.at("positions"), 4);
  EXPECT_EQ(r.at("windows"), 2);
  EXPECT_DOUBLE_EQ(r.at("ppl"), std::exp(2.0));
  EXPECT_DOUBLE_EQ(r.at("ppl_change"), std::exp(1.0) - 1);
  EXPECT_DOUBLE_EQ(r.at("kld_mean"), 0.25);
  EXPECT_DOUBLE_EQ(r.at("kld_max"), 0.5);
  EXPECT_DOUBLE_EQ(r.at("same_top1"), 0.5);
  EXPECT_DOUBLE_EQ(r.at("bits_per_value"), 5);
  EXPECT_EQ(r.at("worst").at("window"), 0);
  EXPECT_EQ(r.at("worst").at("position"), 300);
  ASSERT_EQ(r.at("buckets").size(), 2u);  // positions 300 and 1300
  EXPECT_DOUBLE_EQ(r.at("buckets")[0].at("ppl"), std::exp(1.5));
  EXPECT_DOUBLE_EQ(r.at("buckets")[1].at("kld_mean"), 0.25);
  EXPECT_EQ(r.at("buckets")[1].at("from"), 1024);
}

TEST(EvalReportTest, WindowsOfALongerRunAreLeftOut) {
  const std::vector<Json> measurements = {Measurement("f16", 0, {1, 1}, {0, 0}), Measurement("f16", 1, {3, 3}, {0, 0})};
  const Json result = SummarizeAccuracy({"f16"}, measurements, 1, true).front();
  EXPECT_EQ(result.at("windows"), 1);
  EXPECT_DOUBLE_EQ(result.at("ppl"), std::exp(1.0));
}

TEST(EvalReportTest, TablesAndPagesShowIt) {
  const Json report = MadeReport();
  const std::string table = AccuracyTable(report), buckets = AccuracyBuckets(report), html = AccuracyHtml(report);
  EXPECT_NE(table.find("razor-2  packed"), std::string::npos) << table;
  EXPECT_NE(table.find("+171.83 %"), std::string::npos) << table;
  for (const char* column : {"99.9 %", "largest", "1:300"})  // of the worst: first window, position 300
    EXPECT_NE(table.find(column), std::string::npos) << table;
  EXPECT_NE(buckets.find("1K-2K"), std::string::npos) << buckets;
  EXPECT_NE(html.find("&lt;model&gt;.gguf"), std::string::npos);
  EXPECT_EQ(html.find("<model>"), std::string::npos);
  EXPECT_NE(html.find("<svg"), std::string::npos);
  EXPECT_TRUE(html.ends_with("</body></html>\n"));
}

TEST(EvalReportTest, AnswersWithMapsAndBuckets) {
  const Json task = {
      {"task", "needle"},
      {"lines", 2},
      {"score", 50.0},
      {"lengths", {{{"length", 1024}, {"score", 100.0}}, {{"length", 4096}, {"score", 0.0}}}},
      {"cells",
       {{{"length", 1024}, {"depth", 0.5}, {"score", 100.0}}, {{"length", 4096}, {"depth", 0.5}, {"score", 0.0}}}},
      {"buckets", {{"0-4k", 12.5}, {"4-8k", nullptr}}}};
  const Json report = {{"evaluation", "needle"},
                       {"model", "m.gguf"},
                       {"threads", 1},
                       {"machine", "m"},
                       {"commit", "c"},
                       {"command", "x"},
                       {"results",
                        {{{"recipe", "f16"},
                          {"mode", "llama.cpp"},
                          {"page_bits_per_value", 16.0},
                          {"average", 50.0},
                          {"tasks", {task}}}}}};
  EXPECT_NE(AnswersTable(report).find("50.00"), std::string::npos);
  const std::string html = AnswersHtml(report, "how");
  EXPECT_NE(html.find("needle, f16"), std::string::npos);
  EXPECT_NE(html.find("50 %"), std::string::npos);   // the row of the map
  EXPECT_NE(html.find("12.50"), std::string::npos);  // the bucket
}

TEST(EvalReportTest, FolderNames) {
  EXPECT_EQ(FolderName("razor-2"), "razor-2");
  EXPECT_NE(FolderName("razor-2:sinks=8"), FolderName("razor-2:sinks,8"));
  EXPECT_EQ(FolderName("a/b").find('/'), std::string::npos);
  EXPECT_NE(FolderName(".."), "..");
}

TEST(LimitTest, ParsesAndCompares) {
  const Limit limit = ParseLimit("kld > 0.05", {"kld", "ppl"});
  EXPECT_EQ(limit.metric, "kld");
  EXPECT_TRUE(limit.FailsAt(0.06));
  EXPECT_FALSE(limit.FailsAt(0.05));
  EXPECT_TRUE(limit.FailsAt(std::numeric_limits<double>::quiet_NaN()));  // not known is not met
  EXPECT_TRUE(ParseLimit("kld>=0.05", {"kld"}).FailsAt(0.05));
  EXPECT_TRUE(ParseLimit("same_top1<0.9", {"same_top1"}).FailsAt(0.89));
  EXPECT_FALSE(ParseLimit("same_top1<=0.9", {"same_top1"}).FailsAt(0.91));
  for (const char* bad : {"kld", "kld>", "kld>x", "kld>1x", "other>1", ">1", "kld=1", ""})
    EXPECT_THROW(ParseLimit(bad, {"kld"}), UsageError) << bad;
}

TEST(HtmlTest, PlotsLeaveOutWhatCannotBeDrawn) {
  const Axis plain{.label = "x", .logarithmic = false, .format = {}},
      logarithmic{.label = "y", .logarithmic = true, .format = {}};
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(PlotSvg({{"a", "red", {{1, 0}, {2, nan}}}}, plain, logarithmic, true), "");
  const std::string svg = PlotSvg({{"<a>", "red", {{1, 0.1}, {2, 0}, {3, 0.2}}}}, plain, logarithmic, false);
  EXPECT_NE(svg.find("&lt;a&gt;"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(PlotSvg({{"a", "red", {{1, 5}}}}, plain, plain, true).find("nan"), std::string::npos);  // a single point
  EXPECT_EQ(Escaped("<a href=\"x\">&\x01"), "&lt;a href=&quot;x&quot;&gt;&amp; ");
}

}  // namespace
}  // namespace kvrazor::apps

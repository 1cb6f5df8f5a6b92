#include "apps/compare.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace kvrazor::apps {
namespace {

Json Record(const std::string& recipe, double bits, double kld, const std::string& answer) {
  return {{"recipe", recipe},
          {"packed", recipe == "razor-2"},
          {"context", 512},
          {"bits_per_value", bits},
          {"kv_bytes", static_cast<int64_t>(bits * 1e6)},
          {"peak_rss_bytes", 150000000},
          {"prefill_tps", 400.0},
          {"decode_tps", 100 / bits},
          {"ppl", 17.5},
          {"kld_mean", kld},
          {"kld_median", kld / 2},
          {"kld_p99", kld * 10},
          {"kld_max", kld * 30},
          {"same_top1", 0.9},
          {"answer", answer},
          {"model", "/models/a<b>.gguf"},
          {"text", "t.txt"},
          {"threads", 2},
          {"machine", "m"},
          {"commit", "c"},
          {"command", "kvrazor compare"},
          {"decoded_tokens", 60},
          {"positions", 100}};
}

TEST(CompareReportTest, TableHasALineACacheAndRatiosToTheFirst) {
  const std::string table =
      CompareTable({Record("f16", 16, 0, ""), Record("q8_0", 8, 0.0004, ""), Record("razor-2", 2, 0.0512, "")});
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 5);
  EXPECT_NE(table.find("2.00x"), std::string::npos);
  EXPECT_NE(table.find("8.00x"), std::string::npos);
  EXPECT_NE(table.find("0.0512"), std::string::npos);
  EXPECT_NE(table.find("4.0e-04"), std::string::npos);
  EXPECT_NE(table.find("1.5360"), std::string::npos) << "the largest";
}

TEST(CompareReportTest, HtmlEscapesWhatModelsWriteAndNeedsNothingElse) {
  const std::string html =
      CompareHtml({Record("f16", 16, 0, "plain"), Record("razor-2", 2, 0.05, "<script>alert('x')</script> & \x01")},
                  "What's <this>?");
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;"), std::string::npos);
  EXPECT_NE(html.find("What's &lt;this&gt;?"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);
  EXPECT_EQ(html.find('\x01'), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(html.find("<circle"), std::string::npos);
}

TEST(CompareReportTest, HtmlOfTheReferenceAloneHasNoScatter) {
  const std::string html = CompareHtml({Record("f16", 16, 0, "")}, "q");
  EXPECT_EQ(html.find("<circle"), std::string::npos);
  EXPECT_NE(html.find("</html>"), std::string::npos);
}

TEST(CompareReportTest, AnswersAreWrappedAndEmptyOnesSaidToBe) {
  const std::string text =
      CompareAnswers({Record("f16", 16, 0, std::string(300, 'x') + " end"), Record("q8_0", 8, 0.1, "")}, "q");
  EXPECT_NE(text.find("\n  end\n"), std::string::npos);
  EXPECT_NE(text.find("(nothing)"), std::string::npos);
}

}  // namespace
}  // namespace kvrazor::apps

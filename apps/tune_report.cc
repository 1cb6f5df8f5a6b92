#include <fmt/format.h>

#include <cmath>
#include <map>

#include "apps/text_table.h"
#include "apps/tune.h"
#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

using Losses = std::map<int64_t, std::vector<double>>;  // by window

Losses LossesOf(const std::vector<Json>& measurements, const std::string& cache) {
  Losses losses;
  for (const Json& m : measurements) {
    if (m.at("cache") == cache) losses[m.at("window")] = m.at("kld").get<std::vector<double>>();
  }
  if (losses.empty()) throw Error(fmt::format("nothing was measured of the cache '{}'.", cache));
  return losses;
}

std::string Percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

}  // namespace

PairedLoss CompareLosses(const std::vector<Json>& measurements, const std::string& cache, const std::string& base) {
  const Losses ours = LossesOf(measurements, cache), theirs = LossesOf(measurements, base);
  double sum = 0, squares = 0, count = 0;
  for (const auto& [window, klds] : ours) {
    const auto other = theirs.find(window);
    if (other == theirs.end() || other->second.size() != klds.size())
      throw Error(fmt::format("window {} was measured of '{}' and not of '{}'.", window + 1, cache, base));
    for (size_t i = 0; i < klds.size(); ++i) {
      const double difference = klds[i] - other->second[i];
      sum += difference;
      squares += difference * difference;
      ++count;
    }
  }
  const double mean = sum / count;
  const double variance = count > 1 ? std::max(0.0, squares - count * mean * mean) / (count - 1) : 0;
  return {mean, std::sqrt(variance / count)};
}

Json Gain(const std::vector<Json>& measurements, const std::string& tuned, const Json& candidates, double budget) {
  constexpr double kSameBits = 0.005;  // what two decimals of bits do not show
  constexpr double kClear = 2;         // standard errors
  const Json *own = nullptr, *rival = nullptr, *best = nullptr;
  for (const Json& c : candidates) {
    if (c.at("recipe") == tuned) own = &c;
  }
  if (!own) throw Error(fmt::format("the tuned recipe '{}' is not among those measured.", tuned));
  const auto kld = [](const Json& c) { return c.at("kld_mean").get<double>(); };
  const auto bits = [](const Json& c) { return c.at("bits").get<double>(); };
  // The rivals are those of the same or more bits; where nothing has more bits, all of them.
  for (const bool any : {false, true}) {
    for (const Json& c : candidates) {
      if (&c == own || rival == &c || (!any && bits(c) < bits(*own) - kSameBits)) continue;
      if (!rival || kld(c) < kld(*rival)) rival = &c;
    }
    if (rival) break;
  }
  for (const Json& c : candidates) {
    if (bits(c) <= budget + 1e-9 && (!best || kld(c) < kld(*best))) best = &c;
  }
  if (!best) best = own;
  Json gain = {{"use", best->at("recipe")}};
  if (!rival) return gain;
  const PairedLoss difference = CompareLosses(measurements, tuned, rival->at("recipe"));
  const bool is_clear = std::abs(difference.mean) > kClear * difference.standard_error;
  gain["over"] = rival->at("recipe");
  gain["over_bits"] = bits(*rival);
  gain["over_kld"] = kld(*rival);
  gain["kld"] = kld(*own);
  gain["gain"] = -difference.mean / kld(*rival);
  gain["gain_se"] = difference.standard_error / kld(*rival);
  gain["verdict"] = difference.mean < 0 ? (is_clear ? "gained" : "unclear") : (is_clear ? "nothing" : "unclear");
  return gain;
}

std::string TuneGroups(const Json& report) {
  TextTable table({"<layers", "keys: loss", "+-", "share", "values: loss", "+-", "share", "<chosen"});
  for (const Json& g : report.at("groups")) {
    std::vector<std::string> row = {g.at("layers")};
    for (const char* side : {"keys", "values"}) {
      const Json& s = g.at(side);
      row.push_back(fmt::format("{:.4f}", s.at("loss").get<double>()));
      row.push_back(fmt::format("{:.4f}", s.at("loss_se").get<double>()));
      row.push_back(Percent(s.at("share")));
    }
    row.push_back(g.at("chosen"));
    table.Add(row);
  }
  return table.Text();
}

std::string TuneVerdict(const Json& report) {
  const Json& gain = report.at("gain");
  const double asked = report.at("bits_asked"), bits = report.at("bits");
  if (!gain.contains("over")) return fmt::format("{:.3f} bits. No uniform recipe is left to compare with.\n", bits);
  const std::string over =
      fmt::format("{} ({:.3f} bits)", gain.at("over").get<std::string>(), gain.at("over_bits").get<double>());
  const double share = gain.at("gain"), error = gain.at("gain_se");
  const std::string numbers =
      fmt::format("KL divergence {:.4f} against {:.4f}, {:+.1f} % +- {:.1f} %", gain.at("kld").get<double>(),
                  gain.at("over_kld").get<double>(), -100 * share, 100 * error);
  const std::string verdict = gain.at("verdict");
  std::string text =
      verdict == "gained"
          ? fmt::format("Gained over {}, the best uniform recipe of the same or more bits: {}.\n", over, numbers)
      : verdict == "nothing" ? fmt::format("Nothing gained: {} is better. {}.\n", over, numbers)
                             : fmt::format("No gain that these windows can show: {} is as good. {}.\n", over, numbers);
  text += fmt::format("{:.3f} bits per value of the {:g} allowed.\n", bits, asked);
  if (gain.at("use") != report.at("tuned"))
    text += fmt::format("Within the budget the uniform recipe {} has less divergence, so the file holds that one.\n",
                        gain.at("use").get<std::string>());
  return text;
}

}  // namespace kvrazor::apps

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/compare.h"
#include "apps/html.h"
#include "apps/text_table.h"

namespace kvrazor::apps {
namespace {

double Number(const Json& record, const char* field) { return record.at(field).get<double>(); }
std::string Name(const Json& record) { return record.at("recipe").get<std::string>(); }

std::string Colour(const Json& record) {
  if (Name(record) == "f16") return "var(--f16)";
  return record.at("packed").get<bool>() ? "var(--kvrazor)" : "var(--llama)";
}

std::string Table(const std::vector<Json>& records) {
  const Json& f16 = records.front();
  std::string html =
      "<div class=\"wide\"><table><thead><tr><th>cache</th><th>bits per<br>value</th><th>KV "
      "cache</th><th>smaller<br>than f16</th><th>peak<br>"
      "memory</th><th>prefill<br>tok/s</th><th>decode<br>tok/s</th><th>decode<br>vs "
      "f16</th><th>perplexity</th><th>KLD<br>mean</th><th>KLD<br>"
      "median</th><th>KLD<br>99 %</th><th>KLD<br>largest</th><th>same top<br>token</th></tr></thead><tbody>\n";
  for (const Json& r : records) {
    html += fmt::format(
        "<tr><td><span class=\"dot\" "
        "style=\"background:{}\"></span>{}</td><td>{:.2f}</td><td>{}</td><td>{:.2f}&times;</td><td>{}</td><td>{:.0f}</"
        "td>"
        "<td>{:.1f}</td><td>{:.2f}&times;</td><td>{:.3f}</td><td>{:.4f}</td><td>{:.4f}</td><td>{:.3f}</td><td>{:.2f}</"
        "td><td>{:.1f} "
        "%</td></tr>\n",
        Colour(r), Escaped(Name(r)), Number(r, "bits_per_value"), Bytes(Number(r, "kv_bytes")),
        Number(f16, "kv_bytes") / Number(r, "kv_bytes"), Bytes(Number(r, "peak_rss_bytes")), Number(r, "prefill_tps"),
        Number(r, "decode_tps"), Number(r, "decode_tps") / Number(f16, "decode_tps"), Number(r, "ppl"),
        Number(r, "kld_mean"), Number(r, "kld_median"), Number(r, "kld_p99"), Number(r, "kld_max"),
        100 * Number(r, "same_top1"));
  }
  return html + "</tbody></table></div>\n";
}

// Horizontal bars from zero, one a record, the value written at its end.
template <typename Format>
std::string Bars(const std::vector<Json>& records, const char* title, const char* field, Format format) {
  constexpr int kWidth = 360, kLabels = 84, kValues = 72, kRow = 30, kBar = 18;
  double largest = 0;
  for (const Json& r : records) largest = std::max(largest, Number(r, field));
  std::string svg =
      fmt::format("<div class=\"card\"><h3>{0}</h3><svg viewBox=\"0 0 {1} {2}\" role=\"img\" aria-label=\"{0}\">",
                  title, kWidth, static_cast<int>(records.size()) * kRow);
  int y = 0;
  for (const Json& r : records) {
    const double width = largest > 0 ? std::max(2.0, (kWidth - kLabels - kValues) * Number(r, field) / largest) : 2.0;
    svg += fmt::format(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" "
        "rx=\"3\" fill=\"{}\">"
        "<title>{}: {}</title></rect><text x=\"{:.1f}\" y=\"{}\">{}</text>",
        kLabels - 8, y + 20, Escaped(Name(r)), kLabels, y + (kRow - kBar) / 2, width, kBar, Colour(r), Escaped(Name(r)),
        format(Number(r, field)), kLabels + width + 6, y + 20, format(Number(r, field)));
    y += kRow;
  }
  return svg + "</svg></div>\n";
}

// Mean KL divergence (logarithmic) over bits a value: down and to the left is better. The reference has no divergence to show.
std::string Scatter(const std::vector<Json>& records) {
  constexpr double kWidth = 360, kHeight = 240, kLeft = 48, kRight = 14, kTop = 10, kBottom = 40;
  double low = 1e300, high = 0, most_bits = 0;
  for (const Json& r : records) {
    if (const double kld = Number(r, "kld_mean"); kld > 0) {
      low = std::min(low, kld);
      high = std::max(high, kld);
      most_bits = std::max(most_bits, Number(r, "bits_per_value"));
    }
  }
  if (high == 0) return "";
  const double first = std::floor(std::log10(low)), last = std::max(first + 1, std::ceil(std::log10(high)));
  const double bits_step = most_bits > 8 ? 2 : 1;
  const double max_bits = std::ceil(most_bits / bits_step + 0.2) * bits_step;
  const auto x_of = [&](double bits) { return kLeft + (kWidth - kLeft - kRight) * bits / max_bits; };
  const auto y_of = [&](double kld) {
    return kTop + (kHeight - kTop - kBottom) * (last - std::log10(kld)) / (last - first);
  };
  std::string svg = fmt::format(
      "<div class=\"card\"><h3>KL divergence and bits per value</h3><svg viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"KL divergence over bits per value\">",
      kWidth, kHeight);
  for (double e = first; e <= last; ++e) {
    const double y = y_of(std::pow(10, e));
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/><text class=\"tick\" x=\"{}\" "
        "y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>",
        kLeft, kWidth - kRight, y, y, kLeft - 6, y + 4, std::pow(10, e));
  }
  for (double bits = 0; bits <= max_bits; bits += bits_step)
    svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:g}</text>", x_of(bits),
                       kHeight - kBottom + 18, bits);
  svg += fmt::format(
      "<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">bits per value, everything included</text>",
      (kLeft + kWidth - kRight) / 2, kHeight - 4);
  for (const Json& r : records) {
    const double kld = Number(r, "kld_mean"), bits = Number(r, "bits_per_value");
    if (kld <= 0) continue;
    // To the right of its point, unless that would leave the plot or cover another point.
    bool on_the_left = x_of(bits) > kWidth - 90;
    for (const Json& other : records) {
      const double dx = x_of(Number(other, "bits_per_value")) - x_of(bits);
      if (Number(other, "kld_mean") > 0 && dx > 0 && dx < 70 &&
          std::abs(y_of(Number(other, "kld_mean")) - y_of(kld)) < 12)
        on_the_left = true;
    }
    svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\" fill=\"{}\"><title>{}: {:.2f} bits, {:.4g} nats</title></circle>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>",
        x_of(bits), y_of(kld), Colour(r), Escaped(Name(r)), bits, kld, x_of(bits) + (on_the_left ? -9 : 9),
        y_of(kld) + 4, on_the_left ? "end" : "start", Escaped(Name(r)));
  }
  return svg + "</svg></div>\n";
}

std::string Legend() {
  std::string html = "<p class=\"faint\">";
  for (const auto& [colour, text] : {std::pair{"f16", "16 bit, the reference"},
                                     std::pair{"llama", "llama.cpp's own types"}, std::pair{"kvrazor", "kvrazor"}})
    html += fmt::format("<span class=\"dot\" style=\"background:var(--{})\"></span>{} &emsp;", colour, text);
  return html + "</p>\n";
}

}  // namespace

std::string CompareHtml(const std::vector<Json>& records, const std::string& question) {
  const Json& first = records.front();
  const auto text_of = [&first](const char* field) { return Escaped(first.at(field).get<std::string>()); };
  const std::string context = fmt::format("{}", first.at("context").get<int64_t>());
  const std::string model_path = first.at("model").get<std::string>();
  const std::string model = Escaped(model_path.substr(model_path.find_last_of('/') + 1));
  std::string html = fmt::format(
      "{1}<h1>{0}: {2} tokens, {3} KV caches</h1>\n"
      "<p class=\"faint\">Text: {4}. Everything is compared with llama.cpp's 16-bit cache over the same text.</p>\n",
      model, PageHead("KV caches of " + model), context, records.size(), text_of("text"));
  html += Table(records);
  html += "<h2>Plots</h2>\n" + Legend() + "<div class=\"plots\">\n";
  html += Bars(records, "KV cache", "kv_bytes", [](double v) { return Bytes(v); });
  html += Bars(records, "Decode, tokens/s at the full context", "decode_tps",
               [](double v) { return fmt::format("{:.1f}", v); });
  html += Scatter(records);
  html += "</div>\n<h2>Answers</h2>\n<p>" + Escaped(question) + "</p>\n<div class=\"answers\">\n";
  for (const Json& r : records) {
    html += fmt::format(
        "<div class=\"card\"><h3><span class=\"dot\" style=\"background:{}\"></span>{}</h3><p>{}</p></div>\n",
        Colour(r), Escaped(Name(r)), Escaped(r.at("answer").get<std::string>()));
  }
  html += fmt::format(
      "</div>\n<h2>How it was measured</h2>\n<p>One process a cache. Bits per value: all bytes of the cache, windows, "
      "staging and tables too, over the "
      "values that a 16-bit cache of this context holds. Peak memory: of the process, the mapped model included. "
      "Decode: median of {} tokens "
      "at the full context. Perplexity and KL divergence (nats, from f16): a second pass over the same text, 128 "
      "tokens at a time, at {} "
      "positions.</p>\n<p class=\"faint\">{}, {} threads. Commit {}.</p>\n<p><code>{}</code></p>\n</body></html>\n",
      first.at("decoded_tokens").get<int64_t>(), first.at("positions").get<int64_t>(), text_of("machine"),
      first.at("threads").get<int>(), text_of("commit"), text_of("command"));
  return html;
}

}  // namespace kvrazor::apps

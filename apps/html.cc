#include "apps/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace kvrazor::apps {
namespace {

// Colours by who keeps the cache, the same in all plots; both sets keep 3:1 against their background.
constexpr char kStyle[] = R"(
:root { color-scheme: light dark; --page: #fcfcfb; --text: #1b1b19; --faint: #66655f; --line: #dddcd5; --card: #ffffff;
        --f16: #7a7970; --llama: #2a6fbb; --kvrazor: #c2571a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #171716; --text: #eceae3; --faint: #a3a196; --line: #3a3935; --card: #1f1f1d; --f16: #98968b; --llama: #6ba5e7; --kvrazor: #ea8a50; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 78rem; background: var(--page); color: var(--text);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; } .faint { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: .92rem; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); vertical-align: bottom; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
.plots, .answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; }
.card h3 { font-size: .95rem; margin: 0 0 .5rem; }
.card p { overflow-wrap: anywhere; white-space: pre-wrap; margin: 0; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; } svg .tick { fill: var(--faint); }
svg .grid { stroke: var(--line); stroke-width: 1; }
code { font-size: .85rem; overflow-wrap: anywhere; }
)";

constexpr size_t kMostMarks = 64;  // on a line; more would hide it
constexpr double kWidth = 420, kHeight = 280, kLeft = 56, kRight = 16, kTop = 12, kBottom = 46;

std::string Formatted(const Axis& axis, double value) {
  return axis.format ? axis.format(value) : fmt::format("{:g}", value);
}

// Where values of an axis lie between two pixels, and where its ticks are.
class Scale {
 public:
  Scale(const Axis& axis, std::vector<double> values, double from, double to) : axis_(axis), from_(from), to_(to) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    low_ = *low, high_ = *high;
    if (axis.logarithmic) {
      low_ = std::floor(std::log10(low_)), high_ = std::max(low_ + 1, std::ceil(std::log10(high_)));
      for (double e = low_; e <= high_; ++e) ticks_.push_back(std::pow(10, e));
      return;
    }
    if (low_ > 0 && low_ < 0.7 * high_) low_ = 0;
    if (low_ == high_) low_ -= 0.5 * std::abs(low_) + 0.5, high_ += 0.5 * std::abs(high_) + 0.5;
    const double rough = (high_ - low_) / 5, power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
    low_ = std::floor(low_ / step) * step, high_ = std::ceil(high_ / step) * step;
    for (int i = 0; low_ + i * step <= high_ + step / 2; ++i) ticks_.push_back(low_ + i * step);
  }
  double At(double value) const {
    const double v = axis_.logarithmic ? std::log10(value) : value;
    return from_ + (to_ - from_) * (v - low_) / (high_ - low_);
  }
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  const Axis& axis_;
  double from_, to_, low_, high_;
  std::vector<double> ticks_;
};

bool IsDrawn(const std::pair<double, double>& point, const Axis& x, const Axis& y) {
  const auto fits = [](double v, const Axis& axis) { return std::isfinite(v) && (!axis.logarithmic || v > 0); };
  return fits(point.first, x) && fits(point.second, y);
}

std::string Grid(const Scale& x_scale, const Scale& y_scale, const Axis& x, const Axis& y) {
  std::string svg;
  for (const double tick : y_scale.ticks()) {
    const double at = y_scale.At(tick);
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/><text class=\"tick\" x=\"{}\" "
        "y=\"{:.1f}\" "
        "text-anchor=\"end\">{}</text>",
        kLeft, kWidth - kRight, at, at, kLeft - 6, at + 4, Escaped(Formatted(y, tick)));
  }
  for (const double tick : x_scale.ticks())
    svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", x_scale.At(tick),
                       kHeight - kBottom + 18, Escaped(Formatted(x, tick)));
  svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                     (kLeft + kWidth - kRight) / 2, kHeight - 8, Escaped(x.label));
  return svg;
}

std::string Mark(double x, double y, const Series& series, const std::string& value, bool named) {
  std::string svg =
      fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"><title>{}: {}</title></circle>", x, y,
                  named ? 5 : 3, series.colour, Escaped(series.name), Escaped(value));
  const bool near_right = x > kWidth - 110;
  if (named)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>", x + (near_right ? -9 : 9), y + 4,
                       near_right ? "end" : "start", Escaped(series.name));
  return svg;
}

}  // namespace

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return out;
}

std::string PageHead(const std::string& title_html) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>{}</title><style>{}</style></head><body>\n",
      title_html, kStyle);
}

std::string HtmlTable(const std::vector<std::string>& headings, const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"wide\"><table><thead><tr>";
  for (const std::string& heading : headings) html += "<th>" + Escaped(heading) + "</th>";
  html += "</tr></thead><tbody>\n";
  for (const auto& row : rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + Escaped(cell) + "</td>";
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string Card(const std::string& title, const std::string& html) {
  return fmt::format("<div class=\"card\"><h3>{}</h3>{}</div>\n", Escaped(title), html);
}

std::string PlotSvg(const std::vector<Series>& series, const Axis& x, const Axis& y, bool lines) {
  std::vector<double> xs, ys;
  for (const Series& s : series) {
    for (const auto& point : s.points) {
      if (!IsDrawn(point, x, y)) continue;
      xs.push_back(point.first);
      ys.push_back(point.second);
    }
  }
  if (xs.empty()) return "";
  const Scale x_scale(x, xs, kLeft, kWidth - kRight), y_scale(y, ys, kHeight - kBottom, kTop);
  std::string svg = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} over {}\">", kWidth, kHeight,
                                Escaped(y.label), Escaped(x.label)) +
                    Grid(x_scale, y_scale, x, y);
  std::string legend;
  for (const Series& s : series) {
    std::string path, marks;
    for (const auto& point : s.points) {
      if (!IsDrawn(point, x, y)) continue;
      const double px = x_scale.At(point.first), py = y_scale.At(point.second);
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px, py);
      if (!lines || s.points.size() <= kMostMarks)
        marks += Mark(px, py, s, fmt::format("{:.4g}, {:.4g}", point.first, point.second), !lines);
    }
    if (lines) {
      svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>", path, s.colour);
      legend += fmt::format("<span class=\"dot\" style=\"background:{}\"></span>{} &emsp;", s.colour, Escaped(s.name));
    }
    svg += marks;
  }
  svg += "</svg>";
  return lines && series.size() > 1 ? svg + "<p class=\"faint\">" + legend + "</p>" : svg;
}

std::string HeatMapSvg(const HeatMap& map) {
  constexpr double kCell = 46, kCellHeight = 26, kLabels = 90, kHead = 44;
  const double width = kLabels + kCell * static_cast<double>(map.columns.size()) + 8;
  const double height = kHead + kCellHeight * static_cast<double>(map.rows.size()) + 8;
  std::string svg =
      fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} by {}\" style=\"max-width:{}px\">", width,
                  height, Escaped(map.row_label), Escaped(map.column_label), width * 1.4);
  svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"14\" text-anchor=\"middle\">{}</text>",
                     (kLabels + width) / 2, Escaped(map.column_label));
  svg += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", kLabels - 8, kHead - 10,
                     Escaped(map.row_label));
  for (size_t c = 0; c < map.columns.size(); ++c)
    svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                       kLabels + kCell * (static_cast<double>(c) + 0.5), kHead - 10, Escaped(map.columns[c]));
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = kHead + kCellHeight * static_cast<double>(r);
    svg += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", kLabels - 8, y + 17,
                       Escaped(map.rows[r]));
    for (size_t c = 0; c < map.columns.size(); ++c) {
      const double value = map.values[r][c];
      if (std::isnan(value)) continue;
      // Red to green over yellow: 0 to 120 degrees; dark text is readable on all of them.
      const double share = std::clamp((value - map.low) / (map.high - map.low), 0.0, 1.0);
      const double x = kLabels + kCell * static_cast<double>(c);
      const std::string text = map.format ? map.format(value) : fmt::format("{:g}", value);
      svg += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\" rx=\"3\" fill=\"hsl({:.0f} 65% 62%)\"/>"
          "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\" style=\"fill:#1b1b19\">{}</text>",
          x + 1, y + 1, kCell - 2, kCellHeight - 2, 120 * share, x + kCell / 2, y + 17, Escaped(text));
    }
  }
  return svg + "</svg>";
}

std::string SeriesColour(size_t index) {
  constexpr std::array kColours = {"#7a7970", "#2a6fbb", "#c2571a", "#2e8b57", "#8e5bb5",
                                   "#b8862b", "#c23b6a", "#3a9aa8", "#6b7f1f", "#a05040"};
  return kColours[index % kColours.size()];
}

}  // namespace kvrazor::apps

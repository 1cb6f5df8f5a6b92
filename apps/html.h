// Pages that need nothing else: their frame, tables and plots as inline SVG. Texts given to these functions are plain and are
// escaped here, except where a parameter is called html.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace kvrazor::apps {

/// For text and attributes; control characters become spaces.
std::string Escaped(const std::string& text);

/// Doctype, style, and the opening of the body; `title_html` is escaped already. The page is closed by "</body></html>".
std::string PageHead(const std::string& title_html);

/// First column to the left, all others to the right.
std::string HtmlTable(const std::vector<std::string>& headings, const std::vector<std::vector<std::string>>& rows);

/// A card with a title around a plot.
std::string Card(const std::string& title, const std::string& html);

struct Series {
  std::string name;
  std::string colour;  ///< CSS
  std::vector<std::pair<double, double>> points;
};
struct Axis {
  std::string label;
  bool logarithmic = false;
  std::function<std::string(double)> format;  ///< of the ticks; by default the plain number
};
/// Points joined by lines (`lines`) or alone, each with its name beside it; a legend if there are several series with lines.
/// Points that are not finite, or not positive on a logarithmic axis, are left out; nothing is drawn if none is left.
std::string PlotSvg(const std::vector<Series>& series, const Axis& x, const Axis& y, bool lines);

struct HeatMap {
  std::vector<std::string> columns, rows;
  std::vector<std::vector<double>> values;  ///< [rows][columns], NaN: empty
  double low = 0, high = 1;                 ///< the ends of the colour scale
  std::function<std::string(double)> format;
  std::string column_label, row_label;
};
std::string HeatMapSvg(const HeatMap& map);

/// Colours for caches that stay apart from each other, the same for the same place in a list.
std::string SeriesColour(size_t index);

}  // namespace kvrazor::apps

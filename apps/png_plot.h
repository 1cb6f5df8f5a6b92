// Plots as PNG files, drawn with cairo: lines over an index, and maps of magnitudes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvrazor::apps {

struct PngSeries {
  std::string name;
  std::vector<double> values;   ///< over 0, 1, 2 ...; those that are not positive are left out
  std::vector<int64_t> marked;  ///< indices drawn as dots
};
/// Lines over a common index, logarithmic upwards. Returns the bytes of the file. Throws Error if there is nothing to draw.
std::string LinesPng(const std::string& title, const std::string& x_label, const std::string& y_label,
                     const std::vector<PngSeries>& series);

struct PngMap {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;         ///< [rows][columns], not negative
  std::vector<int64_t> row_borders;  ///< a line above each of these rows
  std::string title, x_label, y_label, value_label;
};
/// Each cell's value as a colour, row 0 at the top, with a scale of colours; what lies above the 99.5 % quantile has the last
/// colour. Where cells are smaller than pixels the largest shows. Returns the bytes of the file. Throws Error as above.
std::string MapPng(const PngMap& map);

/// For bytes inside of JSON and pages.
std::string Base64(const std::string& bytes);
/// Throws Error if it is not the result of Base64.
std::string FromBase64(const std::string& text);

}  // namespace kvrazor::apps

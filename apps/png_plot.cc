#include "apps/png_plot.h"

#include <cairo/cairo.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

constexpr int kWidth = 1200, kHeight = 520;
constexpr double kLeft = 84, kRight = 28, kTop = 48, kBottom = 60;
constexpr double kScaleBar = 118;  // what a map's scale of colours takes at the right
constexpr double kText = 15, kTitle = 18;

struct Colour {
  double red, green, blue;
};
constexpr Colour kInk = {0.11, 0.11, 0.10}, kFaint = {0.85, 0.85, 0.83}, kMark = {0.80, 0.15, 0.15};
constexpr Colour kBorder = {1.0, 0.35, 0.25};  // no colour of the map
constexpr std::array kSeries = {Colour{0.16, 0.44, 0.73}, Colour{0.76, 0.34, 0.10}, Colour{0.18, 0.55, 0.34},
                                Colour{0.56, 0.36, 0.71}};
// Matplotlib's viridis at 0, 1/8 ... 1: even steps of lightness, readable without colours.
constexpr std::array kMap = {Colour{0.267, 0.005, 0.329}, Colour{0.278, 0.175, 0.484}, Colour{0.230, 0.322, 0.546},
                             Colour{0.173, 0.449, 0.558}, Colour{0.128, 0.567, 0.551}, Colour{0.158, 0.684, 0.502},
                             Colour{0.369, 0.789, 0.383}, Colour{0.678, 0.864, 0.190}, Colour{0.993, 0.906, 0.144}};

struct SurfaceDeleter {
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
using Surface = std::unique_ptr<cairo_surface_t, SurfaceDeleter>;

void Check(cairo_status_t status) {
  if (status != CAIRO_STATUS_SUCCESS)
    throw Error(fmt::format("a plot cannot be drawn: {}.", cairo_status_to_string(status)));
}

// A white page with what is drawn on it.
class Page {
 public:
  Page() : surface_(cairo_image_surface_create(CAIRO_FORMAT_RGB24, kWidth, kHeight)) {
    Check(cairo_surface_status(surface_.get()));
    cairo_ = cairo_create(surface_.get());
    cairo_set_source_rgb(cairo_, 1, 1, 1);
    cairo_paint(cairo_);
    cairo_select_font_face(cairo_, "DejaVu Sans", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
  }
  ~Page() { cairo_destroy(cairo_); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  cairo_t* cairo() const { return cairo_; }
  void Ink(Colour c) const { cairo_set_source_rgb(cairo_, c.red, c.green, c.blue); }

  void Line(double x0, double y0, double x1, double y1, Colour colour, double width = 1) const {
    Ink(colour);
    cairo_set_line_width(cairo_, width);
    cairo_move_to(cairo_, x0, y0);
    cairo_line_to(cairo_, x1, y1);
    cairo_stroke(cairo_);
  }

  /// `align`: 0 begins at x, 0.5 is centred, 1 ends there; y is the middle of the letters.
  void Text(const std::string& text, double x, double y, double align, double size = kText,
            bool upwards = false) const {
    Ink(kInk);
    cairo_set_font_size(cairo_, size);
    cairo_text_extents_t extents;
    cairo_text_extents(cairo_, text.c_str(), &extents);
    cairo_save(cairo_);
    cairo_translate(cairo_, x, y);
    if (upwards) cairo_rotate(cairo_, -std::acos(0.0));
    cairo_move_to(cairo_, -align * extents.x_advance, size * 0.36);
    cairo_show_text(cairo_, text.c_str());
    cairo_restore(cairo_);
  }

  std::string Png() const {
    Check(cairo_status(cairo_));
    std::string bytes;
    const auto append = [](void* to, const unsigned char* data, unsigned int count) {
      static_cast<std::string*>(to)->append(reinterpret_cast<const char*>(data), count);
      return CAIRO_STATUS_SUCCESS;
    };
    Check(cairo_surface_write_to_png_stream(surface_.get(), append, &bytes));
    return bytes;
  }

 private:
  Surface surface_;
  cairo_t* cairo_;
};

struct Frame {
  double left = kLeft, right = kWidth - kRight, top = kTop, bottom = kHeight - kBottom;
};

// 0, 20, 40 ...: about `count` round numbers in [0, end].
std::vector<double> RoundTicks(double end, int count) {
  const double rough = end / count, power = std::pow(10, std::floor(std::log10(rough)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (step >= rough) break;
  }
  std::vector<double> ticks;
  for (int i = 0; i * step <= end * (1 + 1e-9); ++i) ticks.push_back(i * step);
  return ticks;
}

// 0.1, 0.2, 0.5, 1 ... in [low, high].
std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * power >= low && factor * power <= high) ticks.push_back(factor * power);
    }
  }
  return ticks;
}

void DrawTitles(const Page& page, const Frame& f, const std::string& title, const std::string& x_label,
                const std::string& y_label) {
  page.Text(title, f.left, kTop / 2, 0, kTitle);
  page.Text(x_label, (f.left + f.right) / 2, kHeight - 16, 0.5);
  page.Text(y_label, 18, (f.top + f.bottom) / 2, 0.5, kText, /*upwards=*/true);
}

void DrawIndexTicks(const Page& page, const Frame& f, int64_t count) {
  for (const double tick : RoundTicks(static_cast<double>(count), 10)) {
    const double x = f.left + (f.right - f.left) * tick / static_cast<double>(count);
    page.Line(x, f.bottom, x, f.bottom + 5, kInk);
    page.Text(fmt::format("{:g}", tick), x, f.bottom + 17, 0.5);
  }
}

void DrawBorder(const Page& page, const Frame& f) {
  page.Ink(kInk);
  cairo_set_line_width(page.cairo(), 1);
  cairo_rectangle(page.cairo(), f.left, f.top, f.right - f.left, f.bottom - f.top);
  cairo_stroke(page.cairo());
}

Colour MapColour(double share) {
  const double at = std::clamp(share, 0.0, 1.0) * static_cast<double>(kMap.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), kMap.size() - 2);
  const double part = at - static_cast<double>(i);
  const auto mix = [&](double Colour::*c) { return kMap[i].*c * (1 - part) + kMap[i + 1].*c * part; };
  return {mix(&Colour::red), mix(&Colour::green), mix(&Colour::blue)};
}

uint32_t Pixel(Colour c) {
  const auto byte = [](double x) { return static_cast<uint32_t>(std::lround(255 * x)); };
  return byte(c.red) << 16 | byte(c.green) << 8 | byte(c.blue);
}

// The largest value of the cells under each of `pixels` pixels; where cells are larger they repeat.
std::pair<int64_t, int64_t> CellsUnder(int64_t pixel, int64_t pixels, int64_t cells) {
  const int64_t from = pixel * cells / pixels;
  return {from, std::max(from + 1, (pixel + 1) * cells / pixels)};
}

void DrawCells(const Page& page, const Frame& f, const PngMap& map, double high) {
  const auto width = static_cast<int>(f.right - f.left), height = static_cast<int>(f.bottom - f.top);
  const Surface image(cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height));
  Check(cairo_surface_status(image.get()));
  cairo_surface_flush(image.get());
  unsigned char* data = cairo_image_surface_get_data(image.get());
  const int stride = cairo_image_surface_get_stride(image.get());
  for (int y = 0; y < height; ++y) {
    auto* line = reinterpret_cast<uint32_t*>(data + static_cast<ptrdiff_t>(y) * stride);
    const auto [row, row_end] = CellsUnder(y, height, map.rows);
    for (int x = 0; x < width; ++x) {
      const auto [column, column_end] = CellsUnder(x, width, map.columns);
      float value = 0;
      for (int64_t r = row; r < row_end; ++r) {
        for (int64_t c = column; c < column_end; ++c)
          value = std::max(value, map.values[static_cast<size_t>(r * map.columns + c)]);
      }
      line[x] = Pixel(MapColour(value / high));
    }
  }
  cairo_surface_mark_dirty(image.get());
  cairo_set_source_surface(page.cairo(), image.get(), f.left, f.top);
  cairo_paint(page.cairo());
}

void DrawScale(const Page& page, const Frame& f, const PngMap& map, double high, bool is_cut) {
  const double left = f.right + 22, width = 18;
  for (double y = f.top; y < f.bottom; ++y) {
    page.Ink(MapColour((f.bottom - y) / (f.bottom - f.top)));
    cairo_rectangle(page.cairo(), left, y, width, 1.5);
    cairo_fill(page.cairo());
  }
  for (const double tick : RoundTicks(high, 6)) {
    const double y = f.bottom - (f.bottom - f.top) * tick / high;
    page.Line(left + width, y, left + width + 5, y, kInk);
    page.Text(fmt::format("{:.4g}", tick), left + width + 9, y, 0);
  }
  page.Text(map.value_label + (is_cut ? " (top colour: this and more)" : ""), kWidth - 14, (f.top + f.bottom) / 2, 0.5,
            kText,
            /*upwards=*/true);
}

}  // namespace

std::string LinesPng(const std::string& title, const std::string& x_label, const std::string& y_label,
                     const std::vector<PngSeries>& series) {
  double low = INFINITY, high = 0;
  size_t count = 0;
  for (const PngSeries& s : series) {
    count = std::max(count, s.values.size());
    for (const double value : s.values) {
      if (!(value > 0) || !std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  if (high == 0) throw Error(fmt::format("the plot '{}' has no positive value to draw.", title));
  low /= 1.15;
  high *= 1.15;
  const Page page;
  const Frame f;
  const auto x_of = [&](size_t i) {
    return f.left + (f.right - f.left) * (static_cast<double>(i) + 0.5) / static_cast<double>(count);
  };
  const auto y_of = [&](double value) {
    return f.bottom - (f.bottom - f.top) * std::log(value / low) / std::log(high / low);
  };
  for (const double tick : LogTicks(low, high)) {
    page.Line(f.left, y_of(tick), f.right, y_of(tick), kFaint);
    page.Text(fmt::format("{:g}", tick), f.left - 9, y_of(tick), 1);
  }
  DrawIndexTicks(page, f, static_cast<int64_t>(count));
  DrawTitles(page, f, title, x_label, y_label);
  double legend = f.right;
  for (size_t s = series.size(); s-- > 0;) {  // from the right
    const Colour colour = kSeries[s % kSeries.size()];
    page.Ink(colour);
    cairo_set_line_width(page.cairo(), 1.3);
    cairo_new_path(page.cairo());
    for (size_t i = 0; i < series[s].values.size(); ++i) {
      if (const double value = series[s].values[i]; value > 0 && std::isfinite(value))
        cairo_line_to(page.cairo(), x_of(i), y_of(value));
    }
    cairo_stroke(page.cairo());
    page.Ink(kMark);
    for (const int64_t i : series[s].marked) {
      const double value = series[s].values[static_cast<size_t>(i)];
      if (!(value > 0) || !std::isfinite(value)) continue;
      cairo_arc(page.cairo(), x_of(static_cast<size_t>(i)), y_of(value), 3, 0, 4 * std::acos(0.0));
      cairo_fill(page.cairo());
    }
    cairo_set_font_size(page.cairo(), kText);
    cairo_text_extents_t extents;
    cairo_text_extents(page.cairo(), series[s].name.c_str(), &extents);
    legend -= extents.x_advance;
    page.Text(series[s].name, legend, kTop / 2, 0);
    page.Line(legend - 30, kTop / 2, legend - 8, kTop / 2, colour, 3);
    legend -= 50;
  }
  DrawBorder(page, f);
  return page.Png();
}

std::string MapPng(const PngMap& map) {
  if (map.rows < 1 || map.columns < 1 || std::ssize(map.values) != map.rows * map.columns)
    throw Error(fmt::format("the plot '{}' has {} values for {} rows and {} columns.", map.title, map.values.size(),
                            map.rows, map.columns));
  std::vector<float> sorted = map.values;
  const auto quantile = sorted.begin() + static_cast<ptrdiff_t>(0.995 * static_cast<double>(sorted.size() - 1));
  std::nth_element(sorted.begin(), quantile, sorted.end());
  const float largest = *std::max_element(map.values.begin(), map.values.end());
  const double high = *quantile > 0 ? *quantile : largest;
  if (!(high > 0)) throw Error(fmt::format("the plot '{}' has no positive value to draw.", map.title));
  const Page page;
  const Frame f{.right = kWidth - kScaleBar};
  DrawCells(page, f, map, high);
  const auto y_of = [&](double row) { return f.top + (f.bottom - f.top) * row / static_cast<double>(map.rows); };
  for (const int64_t row : map.row_borders)
    page.Line(f.left, y_of(static_cast<double>(row)), f.right, y_of(static_cast<double>(row)), kBorder, 1.5);
  for (const double tick : RoundTicks(static_cast<double>(map.rows), 8)) {
    page.Line(f.left - 5, y_of(tick), f.left, y_of(tick), kInk);
    page.Text(fmt::format("{:g}", tick), f.left - 9, y_of(tick), 1);
  }
  DrawIndexTicks(page, f, map.columns);
  DrawTitles(page, f, fmt::format("{} (largest {:.4g})", map.title, largest), map.x_label, map.y_label);
  DrawScale(page, f, map, high, largest > high);
  DrawBorder(page, f);
  return page.Png();
}

namespace {
constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
}

std::string Base64(const std::string& bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) text += i + j <= bytes.size() ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

std::string FromBase64(const std::string& text) {
  const std::string digits = kDigits;
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text.substr(0, text.find('='))) {
    const size_t digit = digits.find(c);
    if (digit == std::string::npos) throw Error("this is not base64.");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 255);
  }
  return bytes;
}

}  // namespace kvrazor::apps

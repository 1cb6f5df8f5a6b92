// Plots are read back pixel by pixel.
#include "apps/png_plot.h"

#include <cairo/cairo.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "kvrazor/error.h"

namespace kvrazor::apps {
namespace {

struct Image {
  int width = 0, height = 0;
  std::vector<uint32_t> pixels;
  uint32_t At(double x, double y) const {
    return pixels[static_cast<size_t>(y * height) * static_cast<size_t>(width) + static_cast<size_t>(x * width)];
  }
  int64_t Count(uint32_t colour) const { return std::count(pixels.begin(), pixels.end(), colour); }
};

Image Read(const std::string& png) {
  struct Source {
    const std::string& bytes;
    size_t at = 0;
  } source{png};
  const auto read = [](void* from, unsigned char* to, unsigned int count) {
    auto& s = *static_cast<Source*>(from);
    if (s.at + count > s.bytes.size()) return CAIRO_STATUS_READ_ERROR;
    std::memcpy(to, s.bytes.data() + s.at, count);
    s.at += count;
    return CAIRO_STATUS_SUCCESS;
  };
  cairo_surface_t* surface = cairo_image_surface_create_from_png_stream(read, &source);
  EXPECT_EQ(cairo_surface_status(surface), CAIRO_STATUS_SUCCESS);
  Image image{cairo_image_surface_get_width(surface), cairo_image_surface_get_height(surface), {}};
  const unsigned char* data = cairo_image_surface_get_data(surface);
  const int stride = cairo_image_surface_get_stride(surface);
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      uint32_t pixel;
      std::memcpy(&pixel, data + static_cast<ptrdiff_t>(y) * stride + 4 * static_cast<ptrdiff_t>(x), 4);
      image.pixels.push_back(pixel & 0xffffff);
    }
  }
  cairo_surface_destroy(surface);
  return image;
}

PngMap MadeMap(int64_t rows, int64_t columns, float value) {
  return {.rows = rows,
          .columns = columns,
          .values = std::vector<float>(static_cast<size_t>(rows * columns), value),
          .row_borders = {},
          .title = "made",
          .x_label = "x",
          .y_label = "y",
          .value_label = "v"};
}

TEST(PngPlotTest, MapsShowValuesWhereTheyAre) {
  constexpr uint32_t kLowest = 0x440154, kHighest = 0xfde725;  // the ends of viridis
  PngMap map = MadeMap(2, 3, 0);
  map.values[3] = map.values[1] = 7;  // second row, first column; first row, second column
  const Image image = Read(MapPng(map));
  EXPECT_EQ(image.At(0.2, 0.3), kLowest);
  EXPECT_EQ(image.At(0.5, 0.3), kHighest);
  EXPECT_EQ(image.At(0.8, 0.3), kLowest);
  EXPECT_EQ(image.At(0.2, 0.7), kHighest);
  EXPECT_EQ(image.At(0.5, 0.7), kLowest);
  EXPECT_EQ(image.At(0.01, 0.01), 0xffffffu);
}

TEST(PngPlotTest, TheLargestOfManyCellsShows) {
  constexpr uint32_t kHighest = 0xfde725;
  PngMap map = MadeMap(3000, 5000, 1);
  const int64_t scale_only = Read(MapPng(map)).Count(kHighest);
  EXPECT_GT(scale_only, 100000);  // all cells equal the largest
  map.values.assign(map.values.size(), 0.01f);
  for (int64_t row = 0; row < map.rows; ++row) map.values[static_cast<size_t>(row * 5000 + row % 50 * 100)] = 5;
  const Image image = Read(MapPng(map));  // 3000 cells of 15 million: a 5000th, but every one under a pixel of its own
  EXPECT_GT(image.Count(kHighest), 2000);
}

TEST(PngPlotTest, LinesRiseWithTheirValues) {
  std::vector<double> steps(100, 1.0);
  std::fill(steps.begin() + 50, steps.end(), 100.0);
  const Image image = Read(LinesPng("t", "x", "y", {{"a", steps, {3}}}));
  // Somewhere in a column of pixels, ink: below the middle at the left, above it at the right.
  const auto ink_at = [&](double x) {
    for (int y = image.height - 64; y > 50; --y) {
      const uint32_t pixel = image.At(x, static_cast<double>(y) / image.height);
      if ((pixel & 0xff) > ((pixel >> 16) & 0xff) + 60) return static_cast<double>(y) / image.height;  // blue
    }
    return 0.0;
  };
  EXPECT_GT(ink_at(0.3), 0.5);
  EXPECT_LT(ink_at(0.8), 0.4);
  EXPECT_GT(ink_at(0.8), 0.0);
}

TEST(PngPlotTest, NothingToDrawIsSaid) {
  EXPECT_THROW(LinesPng("t", "x", "y", {}), Error);
  EXPECT_THROW(LinesPng("t", "x", "y", {{"a", {0, -1, NAN, INFINITY}, {}}}), Error);
  EXPECT_THROW(MapPng(MadeMap(2, 2, 0)), Error);
  EXPECT_THROW(MapPng(MadeMap(0, 0, 1)), Error);
  PngMap torn = MadeMap(2, 2, 1);
  torn.values.pop_back();
  EXPECT_THROW(MapPng(torn), Error);
  EXPECT_NO_THROW(LinesPng("t", "x", "y", {{"a", {2}, {0}}}));
}

TEST(PngPlotTest, Base64) {
  for (const auto& [bytes, text] : {std::pair<std::string, std::string>{"", ""},
                                    {"f", "Zg=="},
                                    {"fo", "Zm8="},
                                    {"foo", "Zm9v"},
                                    {"foobar", "Zm9vYmFy"}}) {  // RFC 4648, section 10
    EXPECT_EQ(Base64(bytes), text);
    EXPECT_EQ(FromBase64(text), bytes);
  }
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(FromBase64(Base64(all)), all);
  EXPECT_THROW(FromBase64("a b"), Error);
}

}  // namespace
}  // namespace kvrazor::apps

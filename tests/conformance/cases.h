// What conformance runs over: backends (one for each instruction set of this machine), methods, shapes, pages of
// random tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "src/ops/backend.h"

namespace kvrazor::conformance {

/// Rounding of n operations in a row, relative to the sum of absolute terms (Higham 2002, section 3.1), in f32.
inline double Gamma(double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); }

/// The CPU backend held to one Highway target for as long as this lives.
class BackendOnTarget {
 public:
  explicit BackendOnTarget(int64_t target);
  ~BackendOnTarget();
  BackendOnTarget(const BackendOnTarget&) = delete;
  BackendOnTarget& operator=(const BackendOnTarget&) = delete;
  const Backend* operator->() const { return &CpuBackend(); }
};
std::vector<int64_t> Targets();
std::string TargetName(int64_t target);

/// Recipes under test: every registered method whose sealed sides are not those of another, and what else recipe text can ask of its codecs.
std::vector<std::string> SealedRecipes();

/// Shapes that a side of the recipe can have: every head_dim with 1, 2, 3 and 8 kv heads; with 2 and 3 only for
/// recipes that are not registered themselves.
std::vector<HeadShape> Shapes(const std::string& recipe_text, const SideRecipe& side);
std::string ShapeName(HeadShape shape);

/// "razor_2_k4" from "razor-2:k4": letters, digits and underscores for the names of tests.
std::string TestName(std::string text);

/// Memory whose ends and initial content are known: 64-byte aligned, filled with `fill`, guarded on both sides.
template <class T>
class Guarded {
 public:
  Guarded(int64_t count, int fill) : count_(static_cast<size_t>(count)), bytes_(count_ * sizeof(T) + 3 * kGuard) {
    for (std::byte& b : bytes_) b = static_cast<std::byte>(kMark);
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data()) + kGuard;
    data_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
    std::byte* begin = reinterpret_cast<std::byte*>(data_);
    for (size_t i = 0; i < count_ * sizeof(T); ++i) begin[i] = static_cast<std::byte>(fill);
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return static_cast<int64_t>(count_); }
  bool intact() const {
    const std::byte* begin = reinterpret_cast<const std::byte*>(data_);
    const std::byte* end = begin + count_ * sizeof(T);
    for (const std::byte* p = bytes_.data(); p != begin; ++p)
      if (*p != static_cast<std::byte>(kMark)) return false;
    for (const std::byte* p = end; p != bytes_.data() + bytes_.size(); ++p)
      if (*p != static_cast<std::byte>(kMark)) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr int kMark = 0xc3;
  size_t count_;
  std::vector<std::byte> bytes_;
  T* data_;
};

/// What a page to be sealed looks like.
enum class PageKind {
  kOutliers,    ///< large channels, channel means, tokens of small and large norm; queries of low rank seen
  kExact,       ///< some tokens exact, among them huge ones; infinities and NaN among the others; no queries seen
  kDegenerate,  ///< equal tokens, zero tokens, constant channels, the smallest and the largest f16
  kAllExact,    ///< nothing left to seal
};
inline constexpr PageKind kPageKinds[] = {PageKind::kOutliers, PageKind::kExact, PageKind::kDegenerate,
                                          PageKind::kAllExact};
std::string KindName(PageKind kind);

struct TestPage {
  std::vector<f16_bits> rows;  // [128][num_kv_heads][head_dim]
  TokenMask exact;
  std::vector<f16_bits> exact_rows;
  SecondMoment moment;
  bool has_moment = false;
  const SecondMoment* moment_or_null() const { return has_moment ? &moment : nullptr; }
};
TestPage MakeTestPage(HeadShape shape, PageKind kind, uint32_t seed);

/// f16 of a normal variable.
f16_bits NormalF16(std::mt19937& random, double deviation);

}  // namespace kvrazor::conformance

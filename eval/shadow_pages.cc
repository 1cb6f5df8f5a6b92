#include "eval/shadow_pages.h"

#include <algorithm>

namespace kvrazor::eval {

ShadowPages::ShadowPages(int64_t num_slots, int residual_tokens)
    : num_slots_(num_slots),
      residual_pages_(std::max<int64_t>(1, (residual_tokens + kPageTokens - 1) / kPageTokens)),
      pages_(static_cast<size_t>((num_slots + kPageTokens - 1) / kPageTokens)) {}

void ShadowPages::Write(int64_t slot, bool is_sink) {
  Page& page = PageOf(slot);
  const int t = static_cast<int>(slot % kPageTokens);
  if (page.sealed) {
    page.sealed = false;
    --num_sealed_;
  }
  if (!page.written.Test(t)) ++num_written_;
  page.written.Set(t);
  if (is_sink)
    page.sinks.Set(t);
  else
    page.sinks.Clear(t);
  page.chosen.Clear(t);
  const int64_t p = slot / kPageTokens;
  if (!page.written.All() || (!full_.empty() && full_.back() == p)) return;
  std::erase(full_, p);
  full_.push_back(p);
}

std::vector<int64_t> ShadowPages::Due() const {
  const int64_t count = std::max<int64_t>(0, std::ssize(full_) - residual_pages_);
  return {full_.begin(), full_.begin() + count};
}

void ShadowPages::MarkSealed(int64_t page) {
  pages_[static_cast<size_t>(page)].sealed = true;
  std::erase(full_, page);
  ++num_sealed_;
}

TokenMask ShadowPages::exact(int64_t page) const {
  TokenMask exact = pages_[static_cast<size_t>(page)].sinks;
  exact |= pages_[static_cast<size_t>(page)].chosen;
  return exact;
}

int64_t ShadowPages::num_sealed_exact() const {
  int64_t count = 0;
  for (int64_t p = 0; p < std::ssize(pages_); ++p)
    count += pages_[static_cast<size_t>(p)].sealed ? exact(p).Count() : 0;
  return count;
}

int64_t ShadowPages::num_sealed_chosen() const {
  int64_t count = 0;
  for (const Page& page : pages_) count += page.sealed ? page.chosen.Without(page.sinks).Count() : 0;
  return count;
}

}  // namespace kvrazor::eval

#include "integrations/ggml/cache_side.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "integrations/ggml/counters.h"

namespace kvrazor::ggml {
namespace {

int64_t RowBytes(const CacheSide::Shape& shape) { return shape.row_values * 2; }

}  // namespace

CacheSide::CacheSide(const Shape& shape, const Recipe& recipe, StagingPool& pool, const Backend& backend)
    : shape_(shape),
      pool_(pool),
      backend_(backend),
      rule_(MakeExactRule(recipe)),
      residual_pages_(ResidualPages(recipe)),
      pages_(static_cast<size_t>(shape.slots_per_stream / kPageTokens * shape.num_streams)),
      streams_(static_cast<size_t>(shape.num_streams)) {
  CountTables();
}

CacheSide::~CacheSide() {
  Clear();
  pool_.meter().Add(-table_bytes_);
}

int64_t CacheSide::ResidualPages(const Recipe& recipe) {
  return std::max<int64_t>(1, (recipe.residual_tokens + kPageTokens - 1) / kPageTokens);
}

int64_t CacheSide::PlannedBytes(const Shape& shape, const Recipe& recipe, const PageLayout& layout) {
  constexpr int64_t kDetails = 4;  // the page being filled, the one behind it, sinks; capacities double
  const int64_t pages = shape.slots_per_stream / kPageTokens;  // of a stream
  const int64_t f16_page = kPageTokens * RowBytes(shape);
  const ExactRule rule = MakeExactRule(recipe);
  const int64_t exact = rule.MostTokens(shape.slots_per_stream);
  const int64_t chosen = std::min(pages, rule.chooses() ? exact : 0);  // pages with such tokens
  const int64_t tables = shape.num_streams * (pages * static_cast<int64_t>(sizeof(uint32_t)) +
                                              (kDetails + 2 * chosen) * static_cast<int64_t>(sizeof(PageDetail)) +
                                              chosen * static_cast<int64_t>(sizeof(ChosenTokens)));
  if (layout.page_bytes == 0) return shape.num_streams * pages * f16_page + tables;
  const int64_t staged = std::min(pages, ResidualPages(recipe) + 1);  // + the page being filled
  const int64_t system_page = AddressRange::SystemPageBytes();
  const int64_t sealed = ((pages - staged) * layout.page_bytes + system_page - 1) / system_page * system_page;
  return shape.num_streams * (sealed + staged * f16_page + exact * RowBytes(shape)) + tables;
}

void CacheSide::SetLayout(const PageLayout& layout) {
  layout_ = layout;
  packed_ = CommittedRange(num_pages() * layout.page_bytes, pool_.meter());
  CountTables();
}

const PageDetail* CacheSide::detail(int64_t p) const {
  const uint32_t index = pages_[static_cast<size_t>(p)] / 4;
  return index > 0 ? &details_[index - 1] : nullptr;
}

PageDetail& CacheSide::AddDetail(int64_t p) {
  uint32_t& page = pages_[static_cast<size_t>(p)];
  if (page >= 4) return mutable_detail(p);
  if (free_details_.empty()) {
    details_.emplace_back();
    free_details_.reserve(details_.capacity());  // DropDetail does not allocate
    free_details_.push_back(static_cast<int32_t>(details_.size()) - 1);
    CountTables();
  }
  page += 4 * (static_cast<uint32_t>(free_details_.back()) + 1);
  free_details_.pop_back();
  return mutable_detail(p);
}

void CacheSide::DropDetail(int64_t p) {
  uint32_t& page = pages_[static_cast<size_t>(p)];
  if (page < 4) return;
  const uint32_t index = page / 4 - 1;
  SetChosen(details_[index], nullptr);
  details_[index] = PageDetail();
  free_details_.push_back(static_cast<int32_t>(index));
  page %= 4;
}

void CacheSide::SetState(int64_t p, PageState state) {
  uint32_t& page = pages_[static_cast<size_t>(p)];
  page = page / 4 * 4 + static_cast<uint32_t>(state);
}

TokenMask CacheSide::written(int64_t p) const {
  TokenMask mask;
  if (state(p) == PageState::kStaged) return detail(p)->written;
  if (state(p) == PageState::kSealed) mask.words.fill(~uint64_t{0});
  return mask;
}

void CacheSide::CountTables() {
  auto bytes = static_cast<int64_t>(pages_.capacity() * sizeof(pages_[0]) + details_.capacity() * sizeof(PageDetail) +
                                    free_details_.capacity() * sizeof(int32_t) + streams_.capacity() * sizeof(Stream)) +
               num_chosen_ * static_cast<int64_t>(sizeof(ChosenTokens)) + packed_.table_bytes();
  for (const Stream& stream : streams_) bytes += static_cast<int64_t>(stream.full.capacity() * sizeof(int64_t));
  pool_.meter().Add(bytes - table_bytes_);
  table_bytes_ = bytes;
}

int64_t CacheSide::KeepPages(const Stream& stream) const {
  return std::max<int64_t>(residual_pages_ + stream.hidden_pages, stream.sequences);
}

void CacheSide::NoteSequences(int64_t stream, int in_batch, int hidden_pages) {
  Stream& s = streams_[static_cast<size_t>(stream)];
  s.sequences = std::max(s.sequences, in_batch);
  s.hidden_pages = hidden_pages;
}

void CacheSide::TouchFull(int64_t p) {
  std::vector<int64_t>& full = stream_of(p).full;
  if (!full.empty() && full.back() == p) return;
  ForgetFull(p);
  full.push_back(p);
}

void CacheSide::ForgetFull(int64_t p) {
  std::vector<int64_t>& full = stream_of(p).full;
  full.erase(std::remove(full.begin(), full.end(), p), full.end());
}

TokenMask CacheSide::ExactOf(const PageDetail& page) {
  TokenMask exact = page.sinks;
  if (page.chosen) exact |= page.chosen->tokens;
  return exact;
}

ExactTrace CacheSide::TraceBefore(int64_t p) const {
  const int64_t first = p / pages_per_stream() * pages_per_stream();
  for (int64_t before = p; before-- > first;) {
    if (const ChosenTokens* tokens = chosen(before)) return tokens->trace;
  }
  return {};
}

void CacheSide::ChooseExactTokens(int64_t p) {
  if (!rule_.chooses()) return;
  PageDetail& page = mutable_detail(p);
  ChosenTokens chosen;
  chosen.trace = TraceBefore(p);
  chosen.tokens = ChooseExact(rule_, staged_rows(p), shape_.row_values, page.sinks, chosen.trace);
  SetChosen(page, chosen.tokens.Any() ? &chosen : nullptr);
}

void CacheSide::ChooseExactTokensOf(const CacheSide& keys, int64_t p) {
  if (rule_.chooses()) SetChosen(mutable_detail(p), keys.chosen(p));
}

void CacheSide::SetChosen(PageDetail& page, const ChosenTokens* chosen) {
  if (!chosen && !page.chosen) return;
  num_chosen_ += (chosen != nullptr) - (page.chosen != nullptr);
  page.chosen = chosen ? std::make_unique<ChosenTokens>(*chosen) : nullptr;
  CountTables();
}

/// Sinks and chosen tokens must be those of the rows, before and after.
void CacheSide::SetExactRows(PageDetail& page, std::unique_ptr<f16_bits[]> rows) {
  const int64_t had = page.exact_rows != nullptr, has = rows != nullptr;
  const int64_t change = (has - had) * ExactOf(page).Count() * row_bytes();
  page.exact_rows = std::move(rows);
  exact_bytes_ += change;
  if (page.chosen) chosen_bytes_ += (has - had) * page.chosen->tokens.Count() * row_bytes();
  pool_.meter().Add(change);
}

void CacheSide::DropSealed(int64_t p) {
  if (state(p) != PageState::kSealed) return;
  if (detail(p)) SetExactRows(mutable_detail(p), nullptr);
  DropDetail(p);
  SetState(p, PageState::kEmpty);
  packed_.Release(p * layout_.page_bytes, layout_.page_bytes);
  --sealed_pages_;
}

/// An empty page becomes a staged one of zeros.
PageDetail& CacheSide::AddStaged(int64_t p) {
  PageDetail& page = AddDetail(p);
  page.staged = pool_.Take();
  SetState(p, PageState::kStaged);
  return page;
}

void CacheSide::GiveStaged(int64_t p) { pool_.Give(std::exchange(mutable_detail(p).staged, -1)); }

void CacheSide::Stage(int64_t p) {
  switch (state(p)) {
    case PageState::kStaged: return;
    case PageState::kEmpty: AddStaged(p); return;
    case PageState::kSealed: break;
  }
  const TokenMask were_sinks = sinks(p);
  std::vector<f16_bits> rows(static_cast<size_t>(kPageTokens * shape_.row_values));
  ReadRows(p * kPageTokens, (p + 1) * kPageTokens, rows.data());
  DropSealed(p);
  PageDetail& page = AddStaged(p);
  page.written.words.fill(~uint64_t{0});
  page.sinks = were_sinks;
  pool_.Touch(page.staged, 0, kPageTokens * row_bytes());
  std::copy(rows.begin(), rows.end(), pool_.rows(page.staged));
  Count(GlobalCounters().thawed_pages);
}

f16_bits* CacheSide::RowForWrite(int64_t slot, bool is_sink) {
  const int64_t p = slot / kPageTokens;
  const int t = static_cast<int>(slot % kPageTokens);
  Stage(p);
  PageDetail& page = mutable_detail(p);
  page.written.Set(t);
  if (is_sink)
    page.sinks.Set(t);
  else
    page.sinks.Clear(t);
  if (page.written.All()) TouchFull(p);
  pool_.Touch(page.staged, t * row_bytes(), row_bytes());
  return pool_.rows(page.staged) + t * shape_.row_values;
}

f16_bits* CacheSide::PageForWrite(int64_t p, const TokenMask& sinks) {
  if (state(p) == PageState::kSealed) {
    Count(GlobalCounters().thawed_pages);
    DropSealed(p);
  }
  PageDetail& page = state(p) == PageState::kStaged ? mutable_detail(p) : AddStaged(p);
  page.written.words.fill(~uint64_t{0});
  page.sinks = sinks;
  TouchFull(p);
  pool_.Touch(page.staged, 0, kPageTokens * row_bytes());
  return pool_.rows(page.staged);
}

void CacheSide::InstallSealed(int64_t p, const std::byte* sealed, const TokenMask& sinks, const ChosenTokens* chosen,
                              const f16_bits* exact_rows) {
  ClearPage(p);
  BeginSeal(p);
  std::memcpy(packed_.data() + p * layout_.page_bytes, sealed, static_cast<size_t>(layout_.page_bytes));
  SetState(p, PageState::kSealed);
  ++sealed_pages_;
  if (!sinks.Any() && !chosen) return;
  PageDetail& page = AddDetail(p);
  page.sinks = sinks;
  SetChosen(page, chosen);
  const int64_t values = ExactOf(page).Count() * shape_.row_values;
  auto rows = std::make_unique<f16_bits[]>(static_cast<size_t>(values));
  std::memcpy(rows.get(), exact_rows, static_cast<size_t>(values * 2));
  SetExactRows(page, std::move(rows));
}

void CacheSide::CopyPage(int64_t p, const CacheSide& from, int64_t from_page) {
  switch (from.state(from_page)) {
    case PageState::kEmpty: ClearPage(p); break;
    case PageState::kSealed:
      InstallSealed(p, from.sealed_bytes(from_page), from.sinks(from_page), from.chosen(from_page),
                    from.exact_rows(from_page));
      break;
    case PageState::kStaged: {
      const TokenMask written = from.written(from_page);
      f16_bits* rows = PageForWrite(p, from.sinks(from_page));
      std::memcpy(rows, from.staged_rows(from_page), static_cast<size_t>(kPageTokens * row_bytes()));
      mutable_detail(p).written = written;
      if (!written.All()) ForgetFull(p);
      break;
    }
  }
}

void CacheSide::ClearPage(int64_t p) {
  if (state(p) == PageState::kStaged) {
    GiveStaged(p);
    ForgetFull(p);
    DropDetail(p);
    SetState(p, PageState::kEmpty);
  }
  DropSealed(p);
}

void CacheSide::Clear() {
  for (int64_t p = 0; p < num_pages(); ++p) {
    if (state(p) == PageState::kStaged) GiveStaged(p);
    if (detail(p)) SetExactRows(mutable_detail(p), nullptr);
    DropDetail(p);
    SetState(p, PageState::kEmpty);
  }
  for (Stream& stream : streams_) stream = Stream();
  sealed_pages_ = 0;
  packed_.ReleaseAll();
  CountTables();
}

PageSide CacheSide::Read(int64_t p) const {
  PageSide side;
  if (state(p) == PageState::kSealed) {
    side.sealed = sealed_bytes(p);
    side.exact_rows = exact_rows(p);
    side.exact = exact(p);
  } else {
    side.rows = staged_rows(p);
  }
  return side;
}

PageSide CacheSide::ReadOrZero(int64_t p) {
  if (state(p) == PageState::kEmpty) Stage(p);
  return Read(p);
}

void CacheSide::ReadRows(int64_t first, int64_t last, f16_bits* rows) const {
  const int64_t width = shape_.row_values;
  std::vector<float> values;
  while (first < last) {
    const int64_t p = first / kPageTokens;
    const int64_t end = std::min(last, (p + 1) * kPageTokens);
    const int begin_token = static_cast<int>(first % kPageTokens);
    const int64_t count = (end - first) * width;
    switch (state(p)) {
      case PageState::kEmpty: std::fill_n(rows, count, f16_bits{0}); break;
      case PageState::kStaged:
        std::memcpy(rows, staged_rows(p) + begin_token * width, static_cast<size_t>(count * 2));
        break;
      case PageState::kSealed:
        values.resize(static_cast<size_t>(count));
        backend_.Dequantize(layout_, Read(p), begin_token, begin_token + static_cast<int>(end - first), values.data());
        std::transform(values.begin(), values.end(), rows, F16FromF32);
        break;
    }
    rows += count;
    first = end;
  }
}

void CacheSide::AppendSealable(int64_t stream, std::vector<int64_t>& pages) const {
  if (layout_.page_bytes == 0) return;
  const Stream& s = streams_[static_cast<size_t>(stream)];
  const int64_t due = static_cast<int64_t>(s.full.size()) - KeepPages(s);
  if (due > 0) pages.insert(pages.end(), s.full.begin(), s.full.begin() + due);
}

void CacheSide::AppendSealable(std::vector<int64_t>& pages) const {
  for (int64_t stream = 0; stream < shape_.num_streams; ++stream) AppendSealable(stream, pages);
}

void CacheSide::Encode(int64_t p, const SecondMoment* moment) {
  backend_.Seal(layout_, staged_rows(p), exact(p), moment, packed_.data() + p * layout_.page_bytes);
}

void CacheSide::FinishSeal(int64_t p) {
  PageDetail& page = mutable_detail(p);
  const TokenMask exact = ExactOf(page);
  if (exact.Any()) {
    auto rows = std::make_unique<f16_bits[]>(static_cast<size_t>(exact.Count() * shape_.row_values));
    GatherRows(staged_rows(p), shape_.row_values, exact, rows.get());
    SetExactRows(page, std::move(rows));
  }
  GiveStaged(p);
  if (!exact.Any()) DropDetail(p);
  SetState(p, PageState::kSealed);
  ++sealed_pages_;
  ForgetFull(p);
  Count(GlobalCounters().sealed_pages);
}

void SealPages(const std::vector<SealJob>& jobs, Executor& executor) {
  const size_t at_once = 2 * static_cast<size_t>(executor.num_threads());
  for (size_t first = 0; first < jobs.size(); first += at_once) {
    const size_t last = std::min(jobs.size(), first + at_once);
    for (size_t i = first; i < last; ++i) jobs[i].side->BeginSeal(jobs[i].page);
    executor.Run(static_cast<int64_t>(last - first), [&](int64_t i, int) {
      const SealJob& job = jobs[first + static_cast<size_t>(i)];
      job.side->Encode(job.page, job.moment);
    });
    for (size_t i = first; i < last; ++i) jobs[i].side->FinishSeal(jobs[i].page);
  }
}

}  // namespace kvrazor::ggml

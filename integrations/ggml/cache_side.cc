#include "integrations/ggml/cache_side.h"

#include <algorithm>
#include <cstring>

#include "integrations/ggml/counters.h"

namespace kvrazor::ggml {
namespace {

int64_t RowBytes(const CacheSide::Shape& shape) { return shape.row_values * 2; }

}  // namespace

CacheSide::CacheSide(const Shape& shape, const Recipe& recipe, StagingPool& pool, const Backend& backend)
    : shape_(shape),
      pool_(pool),
      backend_(backend),
      sink_tokens_(recipe.sink_tokens),
      residual_pages_(ResidualPages(recipe)),
      pages_(static_cast<size_t>(shape.slots_per_stream / kPageTokens * shape.num_streams)),
      streams_(static_cast<size_t>(shape.num_streams)) {}

CacheSide::~CacheSide() { Clear(); }

int64_t CacheSide::ResidualPages(const Recipe& recipe) {
  return std::max<int64_t>(1, (recipe.residual_tokens + kPageTokens - 1) / kPageTokens);
}

int64_t CacheSide::PlannedBytes(const Shape& shape, const Recipe& recipe, const PageLayout& layout) {
  const int64_t num_pages = shape.slots_per_stream / kPageTokens * shape.num_streams;
  const int64_t f16_page = kPageTokens * RowBytes(shape);
  if (layout.page_bytes == 0) return num_pages * f16_page;
  const int64_t staged =
      std::min(num_pages, shape.num_streams * (ResidualPages(recipe) + 1));  // + the page being filled
  return num_pages * layout.page_bytes + staged * f16_page + shape.num_streams * recipe.sink_tokens * RowBytes(shape) +
         num_pages * static_cast<int64_t>(sizeof(SlotPage));
}

void CacheSide::SetLayout(const PageLayout& layout) {
  layout_ = layout;
  packed_ = AddressRange::Reserve(num_pages() * layout.page_bytes, AddressRange::Access::kReadWrite);
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

void CacheSide::SetExactRows(SlotPage& page, std::unique_ptr<f16_bits[]> rows) {
  if (page.exact_rows) exact_bytes_ -= page.exact.Count() * row_bytes();
  page.exact_rows = std::move(rows);
  if (page.exact_rows) exact_bytes_ += page.exact.Count() * row_bytes();
}

void CacheSide::DropSealed(int64_t p) {
  SlotPage& page = mutable_page(p);
  if (page.state != PageState::kSealed) return;
  SetExactRows(page, nullptr);
  --sealed_pages_;
  page.state = PageState::kEmpty;
}

void CacheSide::Stage(int64_t p) {
  SlotPage& page = mutable_page(p);
  if (page.state == PageState::kStaged) return;
  f16_bits* rows = pool_.Take();
  if (page.state == PageState::kSealed) {
    ReadRows(p * kPageTokens, (p + 1) * kPageTokens, rows);
    DropSealed(p);
    Count(GlobalCounters().thawed_pages);
  }
  page.rows = rows;
  page.state = PageState::kStaged;
}

f16_bits* CacheSide::RowForWrite(int64_t slot, bool exact) {
  const int64_t p = slot / kPageTokens;
  const int t = static_cast<int>(slot % kPageTokens);
  Stage(p);
  SlotPage& page = mutable_page(p);
  page.written.Set(t);
  if (exact)
    page.exact.Set(t);
  else
    page.exact.Clear(t);
  if (page.written.All()) TouchFull(p);
  return page.rows + t * shape_.row_values;
}

f16_bits* CacheSide::PageForWrite(int64_t p, const TokenMask& exact) {
  SlotPage& page = mutable_page(p);
  if (page.state != PageState::kStaged) {
    f16_bits* rows = pool_.Take();
    if (page.state == PageState::kSealed) Count(GlobalCounters().thawed_pages);
    DropSealed(p);
    page.rows = rows;
    page.state = PageState::kStaged;
  }
  page.written.words.fill(~uint64_t{0});
  page.exact = exact;
  TouchFull(p);
  return page.rows;
}

void CacheSide::InstallSealed(int64_t p, const std::byte* sealed, const TokenMask& written, const TokenMask& exact,
                              const f16_bits* exact_rows) {
  ClearPage(p);
  SlotPage& page = mutable_page(p);
  std::memcpy(packed_.data() + p * layout_.page_bytes, sealed, static_cast<size_t>(layout_.page_bytes));
  page.state = PageState::kSealed;
  page.written = written;
  page.exact = exact;
  ++sealed_pages_;
  if (exact.Any()) {
    const int64_t values = exact.Count() * shape_.row_values;
    auto rows = std::make_unique<f16_bits[]>(static_cast<size_t>(values));
    std::memcpy(rows.get(), exact_rows, static_cast<size_t>(values * 2));
    SetExactRows(page, std::move(rows));
  }
}

void CacheSide::CopyPage(int64_t p, const CacheSide& from, int64_t from_page) {
  const SlotPage& source = from.page(from_page);
  switch (source.state) {
    case PageState::kEmpty: ClearPage(p); break;
    case PageState::kSealed:
      InstallSealed(p, from.sealed_bytes(from_page), source.written, source.exact, source.exact_rows.get());
      break;
    case PageState::kStaged: {
      f16_bits* rows = PageForWrite(p, source.exact);
      std::memcpy(rows, source.rows, static_cast<size_t>(kPageTokens * row_bytes()));
      mutable_page(p).written = source.written;
      if (!source.written.All()) ForgetFull(p);
      break;
    }
  }
}

void CacheSide::ClearPage(int64_t p) {
  SlotPage& page = mutable_page(p);
  if (page.state == PageState::kStaged) {
    pool_.Give(page.rows);
    page.rows = nullptr;
    ForgetFull(p);
  }
  DropSealed(p);
  page.state = PageState::kEmpty;
  page.written = {};
  page.exact = {};
}

void CacheSide::Clear() {
  for (int64_t p = 0; p < num_pages(); ++p) ClearPage(p);
  for (Stream& stream : streams_) stream = Stream();
  packed_.ReleaseAll();
}

PageSide CacheSide::Read(int64_t p) const {
  const SlotPage& page = this->page(p);
  PageSide side;
  if (page.state == PageState::kSealed) {
    side.sealed = sealed_bytes(p);
    side.exact_rows = page.exact_rows.get();
    side.exact = page.exact;
  } else {
    side.rows = page.rows;
  }
  return side;
}

PageSide CacheSide::ReadOrZero(int64_t p) {
  if (page(p).state == PageState::kEmpty) Stage(p);
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
    switch (page(p).state) {
      case PageState::kEmpty: std::fill_n(rows, count, f16_bits{0}); break;
      case PageState::kStaged:
        std::memcpy(rows, page(p).rows + begin_token * width, static_cast<size_t>(count * 2));
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
  const SlotPage& source = page(p);
  backend_.Seal(layout_, source.rows, source.exact, moment, packed_.data() + p * layout_.page_bytes);
}

void CacheSide::FinishSeal(int64_t p) {
  SlotPage& page = mutable_page(p);
  if (page.exact.Any()) {
    auto rows = std::make_unique<f16_bits[]>(static_cast<size_t>(page.exact.Count() * shape_.row_values));
    f16_bits* next = rows.get();
    for (int t = 0; t < kPageTokens; ++t) {
      if (page.exact.Test(t)) next = std::copy_n(page.rows + t * shape_.row_values, shape_.row_values, next);
    }
    SetExactRows(page, std::move(rows));
  }
  pool_.Give(page.rows);
  page.rows = nullptr;
  page.state = PageState::kSealed;
  ++sealed_pages_;
  ForgetFull(p);
  Count(GlobalCounters().sealed_pages);
}

void SealPages(const std::vector<SealJob>& jobs, Executor& executor) {
  if (jobs.empty()) return;
  executor.Run(static_cast<int64_t>(jobs.size()), [&](int64_t i, int) {
    const SealJob& job = jobs[static_cast<size_t>(i)];
    job.side->Encode(job.page, job.moment);
  });
  for (const SealJob& job : jobs) job.side->FinishSeal(job.page);
}

}  // namespace kvrazor::ggml

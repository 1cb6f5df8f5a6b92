#include "integrations/ggml/tensor_access.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "integrations/ggml/carrier.h"
#include "integrations/ggml/convert.h"
#include "integrations/ggml/counters.h"
#include "integrations/ggml/generic_node.h"
#include "integrations/ggml/log.h"
#include "src/core/aligned_bytes.h"

namespace kvrazor::ggml {
namespace {

void Refuse(CacheTensor& tensor, const std::string& reason) {
  constexpr int64_t kMaxMessages = 3;  // a damaged file has thousands of such blocks
  const int64_t before = GlobalCounters().state_errors.fetch_add(1);
  if (before < kMaxMessages) {
    LogError("state: a block of layer %d %s is refused, its tokens are zeros now: %s", tensor.layer->index,
             tensor.packed ? tensor.packed->side_name() : "", reason.c_str());
  }
  if (before + 1 == kMaxMessages) LogError("state: further refused blocks are only counted");
}

/// A model's rows are finite numbers. One that is not would spread through attention to sequences that do not see its token.
void ZeroIfNotFinite(CacheTensor& tensor, f16_bits* row) {
  const int64_t width = tensor.packed->shape().row_values;
  constexpr f16_bits kExponent = 0x7c00;
  if (std::none_of(row, row + width, [](f16_bits x) { return (x & kExponent) == kExponent; })) return;
  Refuse(tensor, "a row holds values that are not finite: the state is damaged");
  std::fill_n(row, width, f16_bits{0});
}

/// A row that is not a whole one: read, changed, written.
void SetPartOfRow(CacheTensor& tensor, int64_t slot, const std::byte* data, int64_t at, int64_t size) {
  CacheSide& side = *tensor.packed;
  std::vector<f16_bits> row(static_cast<size_t>(side.shape().row_values));
  side.ReadRows(slot, slot + 1, row.data());
  std::memcpy(reinterpret_cast<std::byte*>(row.data()) + at, data, static_cast<size_t>(size));
  ZeroIfNotFinite(tensor, row.data());
  const bool is_sink = side.sinks(slot / kPageTokens).Test(static_cast<int>(slot % kPageTokens));
  std::memcpy(side.RowForWrite(slot, is_sink), row.data(), static_cast<size_t>(side.row_bytes()));
}

/// Rows that come without positions: the slot's index in its stream counts.
bool SlotIsSink(const CacheSide& side, int64_t slot) {
  return slot % side.shape().slots_per_stream < side.exact_rule().sinks;
}

void SetRow(CacheTensor& tensor, int64_t slot, const std::byte* row) {
  CacheSide& side = *tensor.packed;
  f16_bits* to = side.RowForWrite(slot, SlotIsSink(side, slot));
  std::memcpy(to, row, static_cast<size_t>(side.row_bytes()));
  ZeroIfNotFinite(tensor, to);
  if ((slot + 1) % kPageTokens == 0) SealDuePages(*tensor.layer, SerialExecutor());
}

/// Slots of a carrier are one whole page, in order.
bool IsWholePage(const std::vector<int64_t>& slots) {
  if (slots.front() % kPageTokens != 0) return false;
  for (size_t i = 1; i < slots.size(); ++i) {
    if (slots[i] != slots.front() + static_cast<int64_t>(i)) return false;
  }
  return true;
}

/// Zeros where the carrier's rows should have been.
void DiscardInbox(CacheTensor& tensor) {
  const CarrierInbox inbox = std::exchange(tensor.inbox, {});
  const std::vector<std::byte> zeros(static_cast<size_t>(tensor.packed->row_bytes()));
  for (const int64_t slot : inbox.slots) SetRow(tensor, slot, zeros.data());
}

/// The page lands somewhere else than it came from: its values as rows, sinks stay sinks.
void SetCarrierRows(CacheTensor& tensor, const CarrierPage& page, const f16_bits* exact_rows) {
  CacheSide& side = *tensor.packed;
  const AlignedBytes sealed(side.layout().page_bytes);
  std::memcpy(sealed.get(), page.sealed, static_cast<size_t>(side.layout().page_bytes));
  PageSide detached;
  detached.sealed = sealed.get();
  detached.exact = page.exact();
  detached.exact_rows = exact_rows;
  const int64_t width = side.shape().row_values;
  std::vector<float> values(static_cast<size_t>(kPageTokens * width));
  side.backend().Dequantize(side.layout(), detached, 0, kPageTokens, values.data());
  for (int t = 0; t < kPageTokens; ++t) {
    const int64_t slot = tensor.inbox.slots[static_cast<size_t>(t)];
    F16FromF32Row(values.data() + t * width, side.RowForWrite(slot, page.sinks.Test(t)), width);
    if ((slot + 1) % kPageTokens == 0) SealDuePages(*tensor.layer, SerialExecutor());
  }
}

/// All 128 rows of a carrier have arrived.
void OpenCarrier(CacheTensor& tensor) {
  CacheSide& side = *tensor.packed;
  CacheLayer& layer = *tensor.layer;
  CarrierPage page;
  const std::string problem = ReadCarrier(side, tensor.inbox.bytes, page, layer.moment_parts);
  if (!problem.empty()) {
    Refuse(tensor, problem);
    DiscardInbox(tensor);
    return;
  }
  const int64_t exact_values = page.exact().Count() * side.shape().row_values;
  std::vector<f16_bits> exact_rows(static_cast<size_t>(exact_values));
  if (exact_values > 0)
    std::memcpy(exact_rows.data(), page.exact_rows, static_cast<size_t>(exact_values) * sizeof(f16_bits));
  if (IsWholePage(tensor.inbox.slots)) {
    side.InstallSealed(tensor.inbox.slots.front() / kPageTokens, page.sealed, page.sinks,
                       page.chosen.tokens.Any() ? &page.chosen : nullptr, exact_rows.data());
    Count(GlobalCounters().state_carriers);
  } else {
    SetCarrierRows(tensor, page, exact_rows.data());
  }
  // A cache that has seen queries of its own keeps its moment.
  if (layer.moment && layer.moment->empty() && AssembleMoment(layer.moment_parts, *layer.moment)) {
    layer.decode_steps = layer.moment_parts.steps;
    layer.moment_parts = {};
  }
  tensor.inbox = {};
}

/// One whole row: part of a carrier, or a row.
void AcceptRow(CacheTensor& tensor, int64_t slot, const std::byte* row) {
  CarrierInbox& inbox = tensor.inbox;
  const std::span<const std::byte> bytes(row, static_cast<size_t>(tensor.packed->row_bytes()));
  if (inbox.slots.empty() && !IsCarrier(bytes)) {
    SetRow(tensor, slot, row);
    return;
  }
  inbox.bytes.insert(inbox.bytes.end(), bytes.begin(), bytes.end());
  inbox.slots.push_back(slot);
  if (inbox.slots.size() == kPageTokens) OpenCarrier(tensor);
}

}  // namespace

void FinishLoading(CacheTensor& tensor) {
  if (tensor.inbox.slots.empty()) return;
  Refuse(tensor,
         "only " + std::to_string(tensor.inbox.slots.size()) + " of its " + std::to_string(kPageTokens) + " rows came");
  DiscardInbox(tensor);
}

void ZeroCarriers(CacheTensor& tensor, std::byte* rows, int64_t num_rows, int64_t row_bytes) {
  for (int64_t r = 0; r < num_rows; ++r) {
    std::byte* row = rows + r * row_bytes;
    if (!IsCarrier({row, static_cast<size_t>(row_bytes)})) continue;
    Refuse(tensor, "it holds a packed page, but this layer is in 16 bits: load it with the recipe it was saved with");
    const int64_t last = std::min(num_rows, r + kPageTokens);
    std::memset(row, 0, static_cast<size_t>((last - r) * row_bytes));
    r = last - 1;
  }
}

void GetBytes(CacheTensor& tensor, std::byte* data, int64_t offset, int64_t size) {
  FinishLoading(tensor);
  const CacheSide& side = *tensor.packed;
  const int64_t row_bytes = side.row_bytes();
  const int64_t page_bytes = kPageTokens * row_bytes;
  const bool carriers = !tensor.cache->settings().rows_only;
  Count(GlobalCounters().state_reads);
  std::vector<f16_bits> rows;
  while (size > 0) {
    const int64_t first = offset / row_bytes;
    const int64_t p = first / kPageTokens;
    int64_t count = 0;
    if (offset == p * page_bytes && size >= page_bytes && carriers && CanCarry(side, p)) {
      count = page_bytes;
      const bool is_key = side.shape().side == Side::kKey;
      WriteCarrier(side, p, {is_key ? tensor.layer->moment.get() : nullptr, tensor.layer->decode_steps},
                   {data, static_cast<size_t>(page_bytes)});
      Count(GlobalCounters().state_carriers);
    } else {
      const int64_t last = std::min((offset + size + row_bytes - 1) / row_bytes, (p + 1) * kPageTokens);
      rows.resize(static_cast<size_t>((last - first) * side.shape().row_values));
      side.ReadRows(first, last, rows.data());
      const int64_t at = offset - first * row_bytes;
      count = std::min(size, (last - first) * row_bytes - at);
      std::memcpy(data, reinterpret_cast<const std::byte*>(rows.data()) + at, static_cast<size_t>(count));
    }
    data += count;
    offset += count;
    size -= count;
  }
}

void SetBytes(CacheTensor& tensor, const std::byte* data, int64_t offset, int64_t size) {
  CacheSide& side = *tensor.packed;
  const int64_t row_bytes = side.row_bytes();
  Count(GlobalCounters().state_writes);
  while (size > 0) {
    const int64_t slot = offset / row_bytes;
    const int64_t at = offset % row_bytes;
    const int64_t count = std::min(size, row_bytes - at);
    if (count == row_bytes) {
      AcceptRow(tensor, slot, data);
    } else {
      FinishLoading(tensor);
      SetPartOfRow(tensor, slot, data, at, count);
    }
    data += count;
    offset += count;
    size -= count;
  }
}

void FillBytes(CacheTensor& tensor, uint8_t value, int64_t offset, int64_t size) {
  FinishLoading(tensor);
  CacheSide& side = *tensor.packed;
  const int64_t page_bytes = side.row_bytes() * kPageTokens;
  const std::vector<std::byte> bytes(static_cast<size_t>(std::min(size, page_bytes)), std::byte{value});
  while (size > 0) {
    const int64_t count = std::min(size, page_bytes - offset % page_bytes);
    if (value == 0 && count == page_bytes) {
      side.ClearPage(offset / page_bytes);
    } else {
      SetBytes(tensor, bytes.data(), offset, count);
    }
    offset += count;
    size -= count;
  }
}

void CopyBytes(CacheTensor& from, int64_t from_offset, CacheTensor& to, int64_t to_offset, int64_t size) {
  FinishLoading(from);
  FinishLoading(to);
  const CacheSide& source = *from.packed;
  CacheSide& target = *to.packed;
  const int64_t row_bytes = source.row_bytes();
  const int64_t page_bytes = row_bytes * kPageTokens;
  const bool same_form = source.has_layout() && target.has_layout() &&
                         source.layout().recipe == target.layout().recipe &&
                         source.shape().side == target.shape().side && source.layout().shape == target.layout().shape;
  std::vector<f16_bits> rows;
  while (size > 0) {
    const int64_t count = std::min(size, page_bytes - from_offset % page_bytes);
    if (count == page_bytes && source.state(from_offset / page_bytes) == PageState::kEmpty) {
      FillBytes(to, 0, to_offset, count);
    } else if (same_form && count == page_bytes && to_offset % page_bytes == 0) {
      target.CopyPage(to_offset / page_bytes, source, from_offset / page_bytes);
    } else {
      rows.resize(static_cast<size_t>(count / 2));
      source.ReadRows(from_offset / row_bytes, (from_offset + count) / row_bytes, rows.data());
      SetBytes(to, reinterpret_cast<const std::byte*>(rows.data()), to_offset, count);
    }
    from_offset += count;
    to_offset += count;
    size -= count;
  }
}

}  // namespace kvrazor::ggml

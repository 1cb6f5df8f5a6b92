// What a cache must hold, kept in the simplest way: for each sequence a vector of tokens and a vector of page numbers. Nothing
// is counted as it changes; every figure is found by looking at all sequences.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kvrazor/cache.h"
#include "reference/exact_tokens.h"
#include "src/ops/backend.h"
#include "tests/cache/toy_backend.h"

namespace kvrazor::test {

/// A token's rows follow from its seed, or were read out of a sealed page by Truncate.
struct Token {
  uint64_t seed = 0;
  std::shared_ptr<const std::vector<f16_bits>> thawed;  // [layers][2][row_values]
};

struct ModelSequence {
  std::vector<Token> tokens;   // committed
  std::vector<int64_t> pages;  // numbers; equal numbers in two sequences: the same stored page
  int64_t num_sealed = 0;
  std::vector<Token> step;  // tokens of the step under way
  int64_t num_sealing = 0;
  int next_layer = 0;

  int64_t kv_len() const { return static_cast<int64_t>(tokens.size()); }
  bool in_step() const { return !step.empty(); }
};

/// Of a sealed page: tokens in 16 bits, and the pools of outlier tokens after it.
struct PageExactModel {
  std::vector<TokenMask> tokens;               // [layer]
  std::vector<reference::OutlierPools> pools;  // [layer]
};

using PageImage = std::vector<std::vector<std::byte>>;  // [layer * 2 + side] sealed bytes or 16-bit rows

class CacheModel {
 public:
  CacheModel(const CacheOptions& options, int64_t sealed_pages, int64_t f16_pages)
      : options(options), sealed_capacity(sealed_pages), f16_capacity(f16_pages) {
    row_values = int64_t{options.shape.num_kv_heads} * options.shape.head_dim;
    for (int layer = 0; layer < options.num_layers; ++layer) {
      const Recipe r = options.recipe.ForModel(options.num_layers).ForLayer(layer);
      formats.push_back(
          {MakePageLayout(r.k, Side::kKey, options.shape), MakePageLayout(r.v, Side::kValue, options.shape)});
      rules.push_back(MakeExactRule(r));
      moments.push_back(SecondMoment(options.shape));
      for (const Side side : {Side::kKey, Side::kValue}) seals |= Layout(layer, side).page_bytes > 0;
    }
  }

  const PageLayout& Layout(int layer, Side side) const {
    return side == Side::kKey ? formats[static_cast<size_t>(layer)].k : formats[static_cast<size_t>(layer)].v;
  }

  /// Row of a token as the model wrote it. 5 mantissa bits fewer than f16 has, so that bf16 holds it, too.
  void FillRow(const Token& token, int layer, Side side, f16_bits* row) const {
    const int64_t slot = layer * 2 + static_cast<int>(side);
    if (token.thawed) {
      std::memcpy(row, token.thawed->data() + slot * row_values, sizeof(f16_bits) * static_cast<size_t>(row_values));
      return;
    }
    uint64_t x = Mix(token.seed * 64 + static_cast<uint64_t>(slot));
    for (int64_t i = 0; i < row_values; ++i) {
      x = x * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      const uint32_t r = static_cast<uint32_t>(x >> 40);
      row[i] = static_cast<f16_bits>((r & 0x83e0u) | ((10 + ((r >> 16) & 7u)) << 10));
    }
  }

  int64_t SealedPagesAt(int64_t tokens) const {
    return seals ? std::max<int64_t>(0, tokens / kPageTokens - options.recipe.residual_tokens / kPageTokens) : 0;
  }

  // Operations: each as its comment in cache.h says. The bool ones return false where the cache must be out of pages.

  bool Begin(const std::vector<std::pair<SequenceId, std::vector<Token>>>& step) {
    std::vector<std::vector<int64_t>> pages_before;
    for (const auto& [id, tokens] : step) pages_before.push_back(sequences.at(id).pages);
    const int64_t copied_before = pages_copied;
    for (const auto& [id, tokens] : step) {
      ModelSequence& seq = sequences.at(id);
      if (seq.kv_len() % kPageTokens != 0) {
        const int64_t old = std::exchange(seq.pages.back(), next_page++);
        pages_copied += std::any_of(sequences.begin(), sequences.end(),
                                    [&](const auto& other) { return ReadsIn16Bits(other.second, old); });
      }
      const int64_t total = seq.kv_len() + static_cast<int64_t>(tokens.size());
      while (static_cast<int64_t>(seq.pages.size()) * kPageTokens < total) seq.pages.push_back(next_page++);
      seq.step = tokens;
      seq.next_layer = 0;
      seq.num_sealing = std::max<int64_t>(0, SealedPagesAt(total) - seq.num_sealed);
    }
    if (Used(false).size() <= static_cast<size_t>(f16_capacity) &&
        Used(true).size() <= static_cast<size_t>(sealed_capacity))
      return true;
    for (size_t i = 0; i < step.size(); ++i) {
      ModelSequence& seq = sequences.at(step[i].first);
      seq.pages = pages_before[i];
      seq.step.clear();
      seq.num_sealing = 0;
    }
    pages_copied = copied_before;
    return false;
  }

  void Commit(const std::vector<SequenceId>& ids, const Backend& backend) {
    for (const SequenceId id : ids) {
      ModelSequence& seq = sequences.at(id);
      seq.tokens.insert(seq.tokens.end(), seq.step.begin(), seq.step.end());
      seq.step.clear();
      for (; seq.num_sealing > 0; --seq.num_sealing) {
        const int64_t page = seq.num_sealed++;
        const int64_t number = seq.pages[static_cast<size_t>(page)];
        if (images.contains(number)) continue;
        exacts[number] = ChooseExactTokens(seq, page);
        images[number] = Seal(seq, page, backend);
        ++pages_sealed;
      }
    }
  }

  void Cancel(SequenceId id) {
    ModelSequence& seq = sequences.at(id);
    seq.step.clear();
    seq.num_sealing = 0;
    seq.pages.resize(static_cast<size_t>((seq.kv_len() + kPageTokens - 1) / kPageTokens));
    ForgetImages();
  }

  void Free(SequenceId id) {
    sequences.erase(id);
    ForgetImages();
  }

  void RollBack(SequenceId id, int64_t tokens) { Shorten(sequences.at(id), sequences.at(id).kv_len() - tokens); }

  bool Truncate(SequenceId id, int64_t kv_len, const Backend& backend) {
    ModelSequence& seq = sequences.at(id);
    const int64_t page = kv_len / kPageTokens;
    const ModelSequence before = seq;
    if (kv_len % kPageTokens == 0 || page >= seq.num_sealed) {
      Shorten(seq, kv_len);
      ForgetImages();
      return true;
    }
    seq.num_sealed = page;
    Shorten(seq, kv_len);
    const int64_t number = std::exchange(seq.pages.back(), next_page++);
    if (Used(false).size() > static_cast<size_t>(f16_capacity)) {
      seq = before;
      return false;
    }
    for (int64_t t = page * kPageTokens; t < kv_len; ++t) {
      auto rows = std::make_shared<std::vector<f16_bits>>();
      for (int slot = 0; slot < options.num_layers * 2; ++slot) {
        const std::vector<float> row =
            ReadSealed(before, number, page, slot / 2, Side{slot % 2}, static_cast<int>(t % kPageTokens), backend);
        for (const float x : row) rows->push_back(F16FromF32(x));
      }
      seq.tokens[static_cast<size_t>(t)] = Token{0, rows};
    }
    ++pages_thawed;
    ForgetImages();
    return true;
  }

  void Fork(SequenceId from, SequenceId to) { sequences[to] = sequences.at(from); }

  // Looking in.

  /// Values of committed token t as Cache::Read must give them.
  std::vector<float> Read(const ModelSequence& seq, int64_t t, int layer, Side side, const Backend& backend) const {
    const int64_t page = t / kPageTokens;
    if (page < seq.num_sealed)
      return ReadSealed(seq, seq.pages[static_cast<size_t>(page)], page, layer, side, static_cast<int>(t % kPageTokens),
                        backend);
    const Token& token =
        t < seq.kv_len() ? seq.tokens[static_cast<size_t>(t)] : seq.step[static_cast<size_t>(t - seq.kv_len())];
    std::vector<f16_bits> row(static_cast<size_t>(row_values));
    FillRow(token, layer, side, row.data());
    std::vector<float> values;
    for (const f16_bits x : row) values.push_back(F32FromF16(x));
    return values;
  }

  /// Numbers of the pages that are stored sealed (or will be when a step ends), or in 16 bits.
  std::vector<int64_t> Used(bool sealed) const {
    std::vector<int64_t> used;
    for (const auto& [id, seq] : sequences) {
      const auto first = seq.pages.begin();
      if (sealed) {
        used.insert(used.end(), first, first + seq.num_sealed + seq.num_sealing);
      } else {
        used.insert(used.end(), first + seq.num_sealed, seq.pages.end());
      }
    }
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    return used;
  }

  /// Pages that several sequences hold.
  int64_t Shared() const {
    std::vector<int64_t> all;
    for (const auto& [id, seq] : sequences) all.insert(all.end(), seq.pages.begin(), seq.pages.end());
    std::sort(all.begin(), all.end());
    int64_t shared = 0;
    for (size_t i = 0; i < all.size();) {
      size_t j = i;
      while (j < all.size() && all[j] == all[i]) ++j;
      shared += j - i > 1;
      i = j;
    }
    return shared;
  }

  /// Bytes of the exact rows of all stored sealed pages.
  int64_t ExactBytes() const {
    int64_t rows = 0;
    for (const auto& [number, image] : images) {
      for (int slot = 0; slot < options.num_layers * 2; ++slot) {
        if (Layout(slot / 2, Side{slot % 2}).page_bytes > 0)
          rows += exacts.at(number).tokens[static_cast<size_t>(slot / 2)].Count();
      }
    }
    return rows * row_values * 2;
  }

  /// Pages that are sealed, not only about to be.
  int64_t NumSealed() const { return static_cast<int64_t>(images.size()); }

  /// 16-bit rows of committed tokens, a shared page once.
  int64_t RowBytes() const {
    std::map<int64_t, int64_t> tokens;  // [page number]
    for (const auto& [id, seq] : sequences) {
      for (int64_t page = seq.num_sealed; page < static_cast<int64_t>(seq.pages.size()); ++page) {
        int64_t& most = tokens[seq.pages[static_cast<size_t>(page)]];
        most = std::max(most, std::min<int64_t>(kPageTokens, std::ssize(seq.tokens) - page * kPageTokens));
      }
    }
    int64_t rows = 0;
    for (const auto& [page, count] : tokens) rows += count;
    return rows * options.num_layers * 2 * row_values * 2;
  }

  CacheOptions options;
  int64_t sealed_capacity, f16_capacity;
  int64_t row_values = 0;
  bool seals = false;
  std::vector<LayerFormat> formats;
  std::vector<ExactRule> rules;
  std::vector<SecondMoment> moments;
  std::map<SequenceId, ModelSequence> sequences;
  std::map<int64_t, PageImage> images;       // [page number]
  std::map<int64_t, PageExactModel> exacts;  // [page number], of the pages that have images
  int64_t next_page = 0;
  int64_t pages_sealed = 0, pages_thawed = 0, pages_copied = 0;

 private:
  static bool ReadsIn16Bits(const ModelSequence& seq, int64_t number) {
    return std::find(seq.pages.begin() + seq.num_sealed, seq.pages.end(), number) != seq.pages.end();
  }

  static void Shorten(ModelSequence& seq, int64_t kv_len) {
    seq.tokens.resize(static_cast<size_t>(kv_len));
    seq.pages.resize(static_cast<size_t>((kv_len + kPageTokens - 1) / kPageTokens));
    seq.num_sealed = std::min(seq.num_sealed, static_cast<int64_t>(seq.pages.size()));
  }

  /// A page that nobody stores sealed any more would be sealed anew.
  void ForgetImages() {
    const std::vector<int64_t> used = Used(true);
    std::erase_if(images,
                  [&](const auto& image) { return !std::binary_search(used.begin(), used.end(), image.first); });
    std::erase_if(exacts, [&](const auto& exact) { return !images.contains(exact.first); });
  }

  PageExactModel ChooseExactTokens(const ModelSequence& seq, int64_t page) const {
    PageExactModel result;
    if (page > 0) result.pools = exacts.at(seq.pages[static_cast<size_t>(page - 1)]).pools;
    result.pools.resize(rules.size());
    for (size_t layer = 0; layer < rules.size(); ++layer) {
      std::vector<f16_bits> keys(static_cast<size_t>(kPageTokens * row_values));
      for (int t = 0; t < kPageTokens; ++t) {
        FillRow(seq.tokens[static_cast<size_t>(page * kPageTokens + t)], static_cast<int>(layer), Side::kKey,
                keys.data() + t * row_values);
      }
      TokenMask tokens = page == 0 ? SinkTokens(rules[layer]) : TokenMask{};
      tokens |= reference::TraceOutliers(rules[layer], keys.data(), row_values, tokens, page * kPageTokens,
                                         result.pools[layer]);
      result.tokens.push_back(tokens);
    }
    return result;
  }

  PageImage Seal(const ModelSequence& seq, int64_t page, const Backend& backend) const {
    PageImage image;
    for (int slot = 0; slot < options.num_layers * 2; ++slot) {
      const int layer = slot / 2;
      const Side side{slot % 2};
      std::vector<f16_bits> rows(static_cast<size_t>(kPageTokens * row_values));
      for (int t = 0; t < kPageTokens; ++t)
        FillRow(seq.tokens[static_cast<size_t>(page * kPageTokens + t)], layer, side, rows.data() + t * row_values);
      std::vector<std::byte> bytes;
      if (Layout(layer, side).page_bytes > 0) {
        const TokenMask exact = exacts.at(seq.pages[static_cast<size_t>(page)]).tokens[static_cast<size_t>(layer)];
        bytes.resize(static_cast<size_t>(Layout(layer, side).page_bytes) + 64);
        std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
        const SecondMoment& moment = moments[static_cast<size_t>(layer)];
        backend.Seal(Layout(layer, side), rows.data(), exact, moment.empty() ? nullptr : &moment, aligned);
        std::memmove(bytes.data(), aligned, static_cast<size_t>(Layout(layer, side).page_bytes));
        bytes.resize(static_cast<size_t>(Layout(layer, side).page_bytes));
      } else {
        bytes.resize(rows.size() * sizeof(f16_bits));
        std::memcpy(bytes.data(), rows.data(), bytes.size());
      }
      image.push_back(std::move(bytes));
    }
    return image;
  }

  std::vector<float> ReadSealed(const ModelSequence& seq, int64_t number, int64_t page, int layer, Side side, int t,
                                const Backend& backend) const {
    const std::vector<std::byte>& bytes = images.at(number)[static_cast<size_t>(layer * 2 + static_cast<int>(side))];
    std::vector<float> values(static_cast<size_t>(row_values));
    const bool is_16_bit = Layout(layer, side).page_bytes == 0;
    if (is_16_bit || exacts.at(number).tokens[static_cast<size_t>(layer)].Test(t)) {
      std::vector<f16_bits> row(static_cast<size_t>(row_values));
      if (is_16_bit) {
        std::memcpy(row.data(), bytes.data() + t * row_values * 2, sizeof(f16_bits) * row.size());
      } else {
        FillRow(seq.tokens[static_cast<size_t>(page * kPageTokens + t)], layer, side, row.data());
      }
      for (size_t i = 0; i < row.size(); ++i) values[i] = F32FromF16(row[i]);
      return values;
    }
    std::vector<std::byte> buffer(bytes.size() + 64);
    std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
    std::memcpy(aligned, bytes.data(), bytes.size());
    PageSide view;
    view.sealed = aligned;
    backend.Dequantize(Layout(layer, side), view, t, t + 1, values.data());
    return values;
  }
};

}  // namespace kvrazor::test

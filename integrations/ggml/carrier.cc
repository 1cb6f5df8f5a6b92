#include "integrations/ggml/carrier.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace kvrazor::ggml {
namespace {

// Starts with a NaN of f16 and continues with bytes that no model writes by chance (2^-128).
constexpr std::array<uint8_t, 16> kMagic = {0xff, 0xff, 'k',  'v',  'r',  'a',  'z',  'o',
                                            'r',  0xff, 0xfd, 0x1b, 0x96, 0xe3, 0x5c, 0xa7};
constexpr uint32_t kVersion = 2;

struct Header {
  std::array<uint8_t, 16> magic;
  uint32_t version = kVersion;
  uint32_t header_bytes = sizeof(Header);
  uint64_t checksum = 0;  // of the whole block, this field 0
  uint64_t layout = 0;
  uint32_t layer = 0;
  uint32_t side = 0;
  uint64_t exact[2] = {0, 0};
  int64_t moment_count = 0;  // queries in the second moment
  int64_t moment_steps = 0;
  int64_t moment_total = 0;  // bytes of all parts
  int64_t moment_first = 0;  // this part
  int64_t moment_bytes = 0;
};
static_assert(sizeof(Header) == 104 && std::is_trivially_copyable_v<Header>);
static_assert(std::is_trivially_copyable_v<ChosenTokens>);

/// Each step is a bijection of the state and of the word: a change within one 8-byte word never goes unnoticed, any
/// other with probability 1 - 2^-64.
class Hash {
 public:
  void Add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      uint64_t word = 0;
      const size_t count = std::min(bytes.size(), sizeof(word));
      std::memcpy(&word, bytes.data(), count);
      bytes = bytes.subspan(count);
      AddWord(word);
    }
  }
  void AddWord(uint64_t word) { state_ = std::rotl((state_ ^ word) * 0x9e3779b97f4a7c15u, 29) + 0x165667b19e3779f9u; }
  uint64_t value() const {
    uint64_t h = state_;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93u;
    return h ^ (h >> 32);
  }

 private:
  uint64_t state_ = 0x27d4eb2f165667c5u;
};

uint64_t Checksum(std::span<const std::byte> block) {
  constexpr size_t kAt = offsetof(Header, checksum);
  Hash hash;
  hash.Add(block.subspan(0, kAt));
  hash.Add(block.subspan(kAt + sizeof(uint64_t)));
  return hash.value();
}

/// Everything that gives the sealed bytes their meaning.
uint64_t LayoutHash(const CacheSide& side) {
  const PageLayout& layout = side.layout();
  const SideRecipe& r = layout.recipe;
  const ExactRule& rule = side.exact_rule();
  Hash hash;
  for (const int64_t field :
       {static_cast<int64_t>(r.codec), int64_t{r.bits}, int64_t{r.group_size}, static_cast<int64_t>(r.axis),
        static_cast<int64_t>(r.zero_point), static_cast<int64_t>(r.token_scale), int64_t{r.rotate},
        int64_t{layout.shape.num_kv_heads}, int64_t{layout.shape.head_dim}, layout.page_bytes}) {
    hash.AddWord(static_cast<uint64_t>(field));
  }
  if (rule.chooses()) {
    for (const int field : {rule.pool, rule.extra, rule.group_tokens}) hash.AddWord(static_cast<uint64_t>(field));
  }
  return hash.value();
}

/// Of the outlier tokens in a carrier.
int64_t ChosenBytes(const CacheSide& side) {
  return side.exact_rule().chooses() ? static_cast<int64_t>(sizeof(ChosenTokens)) : 0;
}

/// Whether `chosen` is something that the rule can have made.
bool IsPossible(const ExactRule& rule, const ChosenTokens& chosen, const TokenMask& exact) {
  return !chosen.tokens.Without(exact).Any() && chosen.trace.pool_size >= 0 && chosen.trace.pool_size <= rule.pool &&
         chosen.trace.num_displaced >= 0 && chosen.trace.num_displaced <= rule.extra;
}

/// The part of the second moment that page p carries.
void PutMoment(const CacheSide& side, int64_t p, const CarrierMoment& source, std::span<std::byte> room,
               Header& header) {
  const auto capacity = static_cast<int64_t>(room.size());
  if (!source.moment || source.moment->empty() || capacity == 0) return;
  std::vector<std::byte> all(static_cast<size_t>(source.moment->bytes()));
  source.moment->Save(all);
  header.moment_count = source.moment->count();
  header.moment_steps = source.steps;
  header.moment_total = source.moment->bytes();
  const int64_t num_parts = (header.moment_total + capacity - 1) / capacity;
  header.moment_first = p % side.pages_per_stream() % num_parts * capacity;
  header.moment_bytes = std::min(capacity, header.moment_total - header.moment_first);
  std::memcpy(room.data(), all.data() + header.moment_first, static_cast<size_t>(header.moment_bytes));
}

void TakeMoment(const Header& header, const std::byte* from, MomentParts& parts) {
  if (header.moment_bytes == 0) return;
  if (parts.count != header.moment_count || parts.steps != header.moment_steps ||
      static_cast<int64_t>(parts.bytes.size()) != header.moment_total) {
    parts.count = header.moment_count;
    parts.steps = header.moment_steps;
    parts.bytes.assign(static_cast<size_t>(header.moment_total), std::byte{0});
    parts.arrived.assign(static_cast<size_t>(header.moment_total), false);
    parts.missing = header.moment_total;
  }
  std::memcpy(parts.bytes.data() + header.moment_first, from, static_cast<size_t>(header.moment_bytes));
  for (int64_t i = header.moment_first; i < header.moment_first + header.moment_bytes; ++i) {
    auto arrived = parts.arrived[static_cast<size_t>(i)];
    parts.missing -= !arrived;
    arrived = true;
  }
}

}  // namespace

bool IsCarrier(std::span<const std::byte> row) {
  return row.size() >= kMagic.size() && std::memcmp(row.data(), kMagic.data(), kMagic.size()) == 0;
}

bool CanCarry(const CacheSide& side, int64_t p) {
  const int64_t bytes = static_cast<int64_t>(sizeof(Header)) + side.layout().page_bytes +
                        side.exact(p).Count() * side.row_bytes() + ChosenBytes(side);
  return side.state(p) == PageState::kSealed && bytes <= kPageTokens * side.row_bytes();
}

void WriteCarrier(const CacheSide& side, int64_t p, const CarrierMoment& moment, std::span<std::byte> block) {
  const TokenMask exact = side.exact(p);
  Header header;
  header.magic = kMagic;
  header.layout = LayoutHash(side);
  header.layer = static_cast<uint32_t>(side.shape().layer);
  header.side = static_cast<uint32_t>(side.shape().side);
  std::copy(exact.words.begin(), exact.words.end(), header.exact);

  std::fill(block.begin(), block.end(), std::byte{0});
  std::span<std::byte> rest = block.subspan(sizeof(Header));
  const auto put = [&](const void* from, int64_t bytes) {
    std::memcpy(rest.data(), from, static_cast<size_t>(bytes));
    rest = rest.subspan(static_cast<size_t>(bytes));
  };
  put(side.sealed_bytes(p), side.layout().page_bytes);
  if (exact.Any()) put(side.exact_rows(p), exact.Count() * side.row_bytes());
  if (ChosenBytes(side) > 0) {
    const ChosenTokens chosen = side.chosen(p) ? *side.chosen(p) : ChosenTokens{};
    put(&chosen, ChosenBytes(side));
  }
  PutMoment(side, p, moment, rest, header);
  std::memcpy(block.data(), &header, sizeof(header));
  header.checksum = Checksum(block);
  std::memcpy(block.data(), &header, sizeof(header));
}

std::string ReadCarrier(const CacheSide& side, std::span<const std::byte> block, CarrierPage& page,
                        MomentParts& parts) {
  Header header;
  std::memcpy(&header, block.data(), sizeof(header));
  if (header.version != kVersion || header.header_bytes != sizeof(Header)) {
    return "it was written in format version " + std::to_string(header.version) + ", this program reads version " +
           std::to_string(kVersion);
  }
  if (header.checksum != Checksum(block)) return "its checksum does not match: the state is damaged";
  if (!side.has_layout() || side.layout().page_bytes == 0 || header.layout != LayoutHash(side)) {
    return "it was written with another recipe or head size: load it with the recipe it was saved with";
  }
  if (header.layer != static_cast<uint32_t>(side.shape().layer) ||
      header.side != static_cast<uint32_t>(side.shape().side)) {
    return "it belongs to layer " + std::to_string(header.layer) + (header.side == 0 ? " keys" : " values");
  }
  TokenMask exact;
  std::copy(std::begin(header.exact), std::end(header.exact), exact.words.begin());
  // The checksum has matched; the sizes are checked all the same, because they are about to be used as offsets.
  const int64_t exact_bytes = exact.Count() * side.row_bytes();
  const int64_t before_moment =
      static_cast<int64_t>(sizeof(Header)) + side.layout().page_bytes + exact_bytes + ChosenBytes(side);
  const auto block_bytes = static_cast<int64_t>(block.size());
  const int64_t room = block_bytes - before_moment;
  const bool moment_fits =
      header.moment_bytes >= 0 && header.moment_bytes <= room && header.moment_first >= 0 &&
      header.moment_first <= header.moment_total - header.moment_bytes && header.moment_count >= 0 &&
      (header.moment_bytes == 0 || header.moment_total == SecondMoment::BytesFor(side.layout().shape));
  ChosenTokens chosen;
  if (room >= 0) {
    std::memcpy(&chosen, block.data() + before_moment - ChosenBytes(side), static_cast<size_t>(ChosenBytes(side)));
  }
  if (room < 0 || !moment_fits || !IsPossible(side.exact_rule(), chosen, exact))
    return "its sizes contradict each other: the state is damaged";

  page.sealed = block.data() + sizeof(Header);
  page.exact_rows = page.sealed + side.layout().page_bytes;
  page.sinks = exact.Without(chosen.tokens);
  page.chosen = chosen;
  TakeMoment(header, block.data() + before_moment, parts);
  return "";
}

bool AssembleMoment(const MomentParts& parts, SecondMoment& moment) {
  if (parts.bytes.empty() || parts.missing != 0) return false;
  if (static_cast<int64_t>(parts.bytes.size()) != moment.bytes()) return false;
  moment.Load(parts.bytes, parts.count);
  return true;
}

}  // namespace kvrazor::ggml

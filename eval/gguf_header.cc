#include "eval/gguf_header.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <set>

#include "ggml.h"
#include "gguf.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

constexpr size_t kReadBufferBytes = size_t{1} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;  // the GGUF specification's limit

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// Reads little-endian values in order and refuses to pass the end of the file.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_)
      throw Error(
          fmt::format("cannot open the model '{}': {}. Give the path of a .gguf file.", path, std::strerror(errno)));
    struct stat info = {};
    if (fstat(fileno(file_.get()), &info) != 0 || !S_ISREG(info.st_mode))
      throw Error(fmt::format("the model '{}' is not a regular file. Give the path of a .gguf file.", path));
    size_ = static_cast<uint64_t>(info.st_size);
    buffer_ = std::make_unique<char[]>(kReadBufferBytes);
    std::setvbuf(file_.get(), buffer_.get(), _IOFBF, kReadBufferBytes);
  }

  uint64_t size() const { return size_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return size_ - position_; }

  [[noreturn]] void Fail(const std::string& what) const {
    throw Error(
        fmt::format("the model '{}' is damaged or not a GGUF file: {} (at byte {} of {}). Fetch the file again and "
                    "compare its checksum.",
                    path_, what, position_, size_));
  }

  void Bytes(void* out, uint64_t count, const char* what) {
    if (count > remaining())
      Fail(fmt::format("it ends inside {}: {} bytes are needed, {} are left", what, count, remaining()));
    if (std::fread(out, 1, count, file_.get()) != count) Fail(fmt::format("reading {} failed", what));
    position_ += count;
  }

  void Skip(uint64_t count, const char* what) {
    if (count > remaining())
      Fail(fmt::format("it ends inside {}: {} bytes are needed, {} are left", what, count, remaining()));
    if (count <= sizeof(scratch_)) return Bytes(scratch_, count, what);  // a seek would throw the buffer away
    if (fseeko(file_.get(), static_cast<off_t>(position_ + count), SEEK_SET) != 0)
      Fail(fmt::format("cannot seek past {}", what));
    position_ += count;
  }

  template <typename T>
  T Value(const char* what) {
    static_assert(std::endian::native == std::endian::little, "GGUF is little endian");
    T value;
    Bytes(&value, sizeof(T), what);
    return value;
  }

  std::string String(const char* what, uint64_t max_bytes = std::numeric_limits<uint64_t>::max()) {
    const uint64_t length = Value<uint64_t>(what);
    if (length > remaining() || length > max_bytes) Fail(fmt::format("{} claims {} bytes", what, length));
    std::string text(length, '\0');
    Bytes(text.data(), length, what);
    return text;
  }

 private:
  std::string path_;
  std::unique_ptr<char[]> buffer_;
  std::unique_ptr<std::FILE, FileCloser> file_;  // closed before its buffer is freed
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  char scratch_[4096];
};

uint64_t ScalarBytes(Reader& reader, int32_t type) {
  switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL: return 1;
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16: return 2;
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_FLOAT32: return 4;
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_FLOAT64: return 8;
    default: reader.Fail(fmt::format("a value has the unknown type {}", type));
  }
}

bool IsInteger(int32_t type) {
  return type != GGUF_TYPE_FLOAT32 && type != GGUF_TYPE_FLOAT64 && type != GGUF_TYPE_STRING;
}

int64_t Integer(Reader& reader, int32_t type, const char* what) {
  switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_BOOL: return reader.Value<uint8_t>(what);
    case GGUF_TYPE_INT8: return reader.Value<int8_t>(what);
    case GGUF_TYPE_UINT16: return reader.Value<uint16_t>(what);
    case GGUF_TYPE_INT16: return reader.Value<int16_t>(what);
    case GGUF_TYPE_UINT32: return reader.Value<uint32_t>(what);
    case GGUF_TYPE_INT32: return reader.Value<int32_t>(what);
    case GGUF_TYPE_INT64: return reader.Value<int64_t>(what);
    case GGUF_TYPE_UINT64: {
      const uint64_t value = reader.Value<uint64_t>(what);
      if (value > uint64_t{std::numeric_limits<int64_t>::max()})
        reader.Fail(fmt::format("{} is absurdly large ({})", what, value));
      return static_cast<int64_t>(value);
    }
    default: reader.Fail(fmt::format("{} has the unknown type {}", what, type));
  }
}

GgufArray ReadArray(Reader& reader) {
  const int32_t type = reader.Value<int32_t>("an array's type");
  const uint64_t length = reader.Value<uint64_t>("an array's length");
  GgufArray array;
  if (type == GGUF_TYPE_STRING) {
    if (length > reader.remaining() / sizeof(uint64_t)) reader.Fail(fmt::format("an array claims {} strings", length));
    for (uint64_t i = 0; i < length; ++i) {
      const uint64_t bytes = reader.Value<uint64_t>("a string's length");
      reader.Skip(bytes, "a string of an array");
    }
  } else {
    const uint64_t element_bytes = ScalarBytes(reader, type);
    if (length > reader.remaining() / element_bytes) reader.Fail(fmt::format("an array claims {} elements", length));
    if (IsInteger(type) && length <= uint64_t{GgufHeader::kMaxKeptElements}) {
      array.values.reserve(length);
      for (uint64_t i = 0; i < length; ++i) array.values.push_back(Integer(reader, type, "an array's element"));
    } else {
      reader.Skip(length * element_bytes, "an array");
    }
  }
  array.length = static_cast<int64_t>(length);
  return array;
}

GgufValue ReadValue(Reader& reader, const char* key) {
  const int32_t type = reader.Value<int32_t>("a value's type");
  switch (type) {
    case GGUF_TYPE_STRING: return reader.String(key);
    case GGUF_TYPE_ARRAY: return ReadArray(reader);
    case GGUF_TYPE_FLOAT32: return double{reader.Value<float>(key)};
    case GGUF_TYPE_FLOAT64: return reader.Value<double>(key);
    case GGUF_TYPE_BOOL: return reader.Value<uint8_t>(key) != 0;
    default: return Integer(reader, type, key);
  }
}

uint64_t PadTo(uint64_t value, uint64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

GgufTensor ReadTensor(Reader& reader) {
  GgufTensor tensor;
  tensor.name = reader.String("a tensor's name", GGML_MAX_NAME - 1);
  const uint32_t dimensions = reader.Value<uint32_t>("a tensor's number of dimensions");
  if (dimensions > tensor.ne.size())
    reader.Fail(fmt::format("tensor '{}' claims {} dimensions", tensor.name, dimensions));
  tensor.ne.fill(1);
  uint64_t values = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const int64_t length = reader.Value<int64_t>("a tensor's size");
    // No type stores less than a bit a value, so a larger product cannot be in this file.
    if (length <= 0 || static_cast<uint64_t>(length) > 8 * reader.size() / values)
      reader.Fail(fmt::format("tensor '{}' claims {} values along dimension {}, more than the file can hold",
                              tensor.name, length, i));
    tensor.ne[i] = length;
    values *= static_cast<uint64_t>(length);
  }
  tensor.type = reader.Value<int32_t>("a tensor's type");
  if (tensor.type < 0 || tensor.type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(tensor.type)) == 0)
    reader.Fail(fmt::format("tensor '{}' has the unknown type {}", tensor.name, tensor.type));
  const ggml_type type = static_cast<ggml_type>(tensor.type);
  if (tensor.ne[0] % ggml_blck_size(type) != 0)
    reader.Fail(fmt::format("a row of tensor '{}' has {} values, not a multiple of the {} in a block of {}",
                            tensor.name, tensor.ne[0], ggml_blck_size(type), ggml_type_name(type)));
  tensor.bytes = values / static_cast<uint64_t>(ggml_blck_size(type)) * ggml_type_size(type);
  tensor.offset = reader.Value<uint64_t>("a tensor's offset");
  return tensor;
}

}  // namespace

std::optional<int64_t> GgufHeader::Int(const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end() || !std::holds_alternative<int64_t>(it->second)) return std::nullopt;
  return std::get<int64_t>(it->second);
}

std::optional<std::string> GgufHeader::Text(const std::string& key) const {
  const auto it = values.find(key);
  if (it == values.end() || !std::holds_alternative<std::string>(it->second)) return std::nullopt;
  return std::get<std::string>(it->second);
}

const GgufArray* GgufHeader::Array(const std::string& key) const {
  const auto it = values.find(key);
  return it == values.end() ? nullptr : std::get_if<GgufArray>(&it->second);
}

uint64_t GgufHeader::tensor_bytes() const {
  uint64_t sum = 0;
  for (const GgufTensor& tensor : tensors) sum += tensor.bytes;
  return sum;
}

GgufHeader ReadGgufHeader(const std::string& path) {
  Reader reader(path);
  GgufHeader header;
  header.path = path;
  header.file_bytes = static_cast<int64_t>(reader.size());

  char magic[4];
  reader.Bytes(magic, sizeof(magic), "the magic number");
  if (std::memcmp(magic, GGUF_MAGIC, sizeof(magic)) != 0) reader.Fail("it does not start with 'GGUF'");
  header.version = reader.Value<uint32_t>("the version");
  if (header.version < 2 || header.version > GGUF_VERSION)
    reader.Fail(fmt::format("it has version {}; versions 2 to {} can be read", header.version, GGUF_VERSION));
  const uint64_t num_tensors = reader.Value<uint64_t>("the number of tensors");
  const uint64_t num_values = reader.Value<uint64_t>("the number of values");
  // Smallest records: a value is a key length, one character, a type and a byte; a tensor is a name length, a number of
  // dimensions, a type and an offset.
  constexpr uint64_t kMinValueBytes = 8 + 1 + 4 + 1, kMinTensorBytes = 8 + 4 + 4 + 8;
  if (num_values > reader.remaining() / kMinValueBytes) reader.Fail(fmt::format("it claims {} values", num_values));
  if (num_tensors > reader.remaining() / kMinTensorBytes) reader.Fail(fmt::format("it claims {} tensors", num_tensors));

  for (uint64_t i = 0; i < num_values; ++i) {
    std::string key = reader.String("a key", kMaxKeyBytes);
    if (key.empty()) reader.Fail(fmt::format("key {} is empty", i));
    GgufValue value = ReadValue(reader, key.c_str());
    if (!header.values.emplace(key, std::move(value)).second)
      reader.Fail(fmt::format("the key '{}' appears twice", key));
  }
  uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
  if (header.values.count(GGUF_KEY_GENERAL_ALIGNMENT)) {
    const int64_t asked = header.Int(GGUF_KEY_GENERAL_ALIGNMENT).value_or(0);
    if (asked <= 0 || asked > (1 << 30) || !std::has_single_bit(static_cast<uint64_t>(asked)))
      reader.Fail("general.alignment is not a power of two");
    alignment = static_cast<uint64_t>(asked);
  }

  std::set<std::string> names;
  uint64_t expected_offset = 0;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    GgufTensor tensor = ReadTensor(reader);
    if (!names.insert(tensor.name).second) reader.Fail(fmt::format("the tensor '{}' appears twice", tensor.name));
    if (tensor.offset != expected_offset)
      reader.Fail(fmt::format("tensor '{}' is said to start at offset {}; the tensors before it end at {}", tensor.name,
                              tensor.offset, expected_offset));
    expected_offset = PadTo(tensor.offset + tensor.bytes, alignment);
    header.tensors.push_back(std::move(tensor));
  }
  header.data_offset = num_tensors > 0 ? PadTo(reader.position(), alignment) : reader.position();
  for (const GgufTensor& tensor : header.tensors) {
    const uint64_t end = header.data_offset + tensor.offset + tensor.bytes;
    if (end > reader.size())
      throw Error(fmt::format(
          "the model '{}' is truncated: tensor '{}' ends at byte {}, the file at byte {}. Fetch the file again.", path,
          tensor.name, end, reader.size()));
  }
  return header;
}

std::vector<std::string> GgufParts(const GgufHeader& header) {
  const int64_t count = header.Int("split.count").value_or(0);
  if (count <= 1) return {header.path};
  if (count > 99999)
    throw Error(fmt::format("the model '{}' claims to be split into {} parts; at most 99999 are possible.", header.path,
                            count));
  const std::string suffix = fmt::format("-{:05}-of-{:05}.gguf", header.Int("split.no").value_or(0) + 1, count);
  if (!header.path.ends_with(suffix))
    throw Error(fmt::format(
        "the model '{}' is one of {} parts, but its name does not end in '{}'. Give the parts their original names.",
        header.path, count, suffix));
  const std::string stem = header.path.substr(0, header.path.size() - suffix.size());
  std::vector<std::string> parts;
  for (int64_t i = 1; i <= count; ++i) parts.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, count));
  return parts;
}

}  // namespace kvrazor::eval

#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/base/check.h"

namespace portolan {

static_assert(std::endian::native == std::endian::little,
              "files are little-endian and written as memory lies");

// A plain number, or a struct of plain numbers without padding.
template <typename T>
concept Plain = std::is_trivially_copyable_v<T> &&
    (std::has_unique_object_representations_v<T> || std::floating_point<T>);

// Appends values to a growing buffer, little-endian. Thread-compatible.
class ByteWriter {
 public:
  template <Plain T>
  void Put(T value) {
    PutArray(std::span<const T>(&value, 1));
  }

  template <Plain T>
  void PutArray(std::span<const T> values) {
    if (values.empty()) return;
    const size_t size = bytes_.size();
    bytes_.resize(size + values.size_bytes());
    std::memcpy(bytes_.data() + size, values.data(), values.size_bytes());
  }

  // Length (u32), then the bytes.
  void PutString(std::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    PutArray(std::span(text.data(), text.size()));
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  void Clear() { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

// Takes values off a buffer that somebody else owns. A value that is not there
// whole reads as zero and ok() is false from then on, so that a parser checks
// once at its end (and before it trusts a length). Thread-compatible.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  size_t remaining() const { return bytes_.size(); }

  template <Plain T>
  T Get() {
    T value{};
    const auto from = Take(sizeof(T));
    if (ok_) std::memcpy(&value, from.data(), sizeof(T));
    return value;
  }

  // Empty, and ok() false, if fewer are left: the length is checked before
  // anything is allocated.
  template <Plain T>
  std::vector<T> GetArray(size_t count) {
    std::vector<T> values;
    if (count > bytes_.size() / sizeof(T)) ok_ = false;
    if (!ok_ || count == 0) return values;
    values.resize(count);
    std::memcpy(values.data(), Take(count * sizeof(T)).data(),
                count * sizeof(T));
    return values;
  }

  std::string GetString() {
    const auto text = GetArray<char>(Get<uint32_t>());
    return std::string(text.begin(), text.end());
  }

  // The next `count` bytes, in place.
  std::span<const std::byte> Take(size_t count) {
    if (count > bytes_.size()) ok_ = false;
    if (!ok_) return {};
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

}  // namespace portolan

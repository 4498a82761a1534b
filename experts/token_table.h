#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "experts/byte_codec.h"

namespace portolan {

// Which experts each token id was sent to: counts per (token, layer, expert),
// aged by halving. Bounded: `capacity` token ids; a new one replaces the rarest
// of a small set. About num_layers * num_experts bytes each.
//
// Thread-compatible, allocates at construction only.
// Source: token-id tables as measured on OLMoE (algorithms.md section 2).
class TokenTable {
 public:
  struct Shape {
    int32_t num_layers = 0;
    int32_t num_experts = 0;
    int32_t top_k = 0;
    int32_t capacity = 0;

    friend bool operator==(const Shape&, const Shape&) = default;
  };

  explicit TokenTable(const Shape& shape);

  const Shape& shape() const { return shape_; }
  // Of a table of such a shape.
  static int64_t BytesOf(const Shape& shape);

  // What is known of a token: times it was seen and, of these, how often it
  // went to each expert of a layer ([num_experts]; empty if never seen).
  struct Entry {
    int32_t visits = 0;
    std::span<const uint8_t> counts = {};
  };
  Entry Find(int32_t token, int32_t layer) const;

  // One more visit: the experts of every layer, [num_layers, top_k].
  void Learn(int32_t token, std::span<const int32_t> experts);

  void Save(ByteWriter& out) const;
  // False if the bytes do not hold a table of this shape.
  bool Load(ByteReader& in);

 private:
  static constexpr size_t kWays = 8;  // places a token id may take

  // The place of the token, or the one it should take.
  size_t FirstPlace(int32_t token) const;
  std::optional<size_t> Locate(int32_t token) const;
  size_t Claim(int32_t token);
  size_t stride() const {
    return static_cast<size_t>(shape_.num_layers) *
           static_cast<size_t>(shape_.num_experts);
  }

  Shape shape_;
  std::vector<int32_t> tokens_;  // -1: free
  std::vector<uint8_t> visits_;
  std::vector<uint8_t> counts_;  // [capacity, num_layers, num_experts]
};

}  // namespace portolan

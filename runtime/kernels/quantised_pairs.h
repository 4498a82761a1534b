#pragma once

#include "runtime/kernels/byte_lanes.h"
#include "runtime/kernels/quantised_tile.h"

// Quantised tiles as pairs of bf16 for gemm_pairs.h. A weight is a power of two
// times an integer of at most eight bits: q of kInt8, (8 + byte % 8) * q of
// kInt4. Two tables of 128 bytes hold the halves of the bf16 of such integers,
// so that a lookup for each takes the place of conversions and multiplications.
// Internal to the path_*.cc files.

namespace portolan {
namespace {

// The lower and the upper bytes of 128 bf16.
struct Bf16Table {
  ByteTable lower[2];
  ByteTable upper[2];
};

template <typename Value>
constexpr Bf16Table TableOfIntegers(Value value) {
  Bf16Table table{};
  for (int i = 0; i < 128; ++i) {
    const float x = static_cast<float>(value(i));
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    table.lower[i / 64].at[i % 64] = static_cast<uint8_t>(bits >> 16);
    table.upper[i / 64].at[i % 64] = static_cast<uint8_t>(bits >> 24);
  }
  return table;
}

// By |q|.
constexpr Bf16Table kInt8Table = TableOfIntegers([](int i) { return i; });
// By (byte % 8) * 16 + q + 8.
constexpr Bf16Table kInt4Table =
    TableOfIntegers([](int i) { return (8 + i / 16) * (i % 16 - 8); });

// The order of bytes in which InterleaveLower() and -Upper() make words of
// [k + 2, k] and of [k + 3, k + 1] for 16 outputs: `from(input, output)` says
// where the byte is.
template <typename From>
constexpr ByteTable ChainOrder(From from) {
  ByteTable order{};
  for (int output = 0; output < 16; ++output) {
    const int at = output / 4 * 16 + output % 4 * 2;
    order.at[at] = static_cast<uint8_t>(from(2, output));
    order.at[at + 1] = static_cast<uint8_t>(from(0, output));
    order.at[at + 8] = static_cast<uint8_t>(from(3, output));
    order.at[at + 9] = static_cast<uint8_t>(from(1, output));
  }
  return order;
}

constexpr ByteTable kInt8Order =
    ChainOrder([](int input, int output) { return input * 16 + output; });
constexpr ByteTable kScaleOrder =
    ChainOrder([](int, int output) { return output; });

// Bytes `first` and `first + 1` of the words of 16 outputs, from two vectors of
// them: JoinLower() and -Upper() of two such bring the one byte or the other
// into the chains' order.
constexpr ByteTable Int4Order(int first) {
  ByteTable order{};
  for (int output = 0; output < 16; ++output) {
    for (int byte = 0; byte < 2; ++byte) {
      const int at = output / 4 * 16 + byte * 8 + output % 4 * 2;
      const int from = output * 4 + first + byte;
      order.at[at] = static_cast<uint8_t>(from);
      order.at[at + 1] = static_cast<uint8_t>(64 + from);
    }
  }
  return order;
}

constexpr ByteTable kInt4Order[2] = {Int4Order(0), Int4Order(2)};

// Four inputs of 16 outputs.
struct FourPairs {
  UintVec even;
  UintVec odd;
};

PORTOLAN_INLINE inline FourPairs Join(Bytes lower, Bytes upper) {
  return {InterleaveLower(lower, upper), InterleaveUpper(lower, upper)};
}

// A tile of kInt8: its integers as bf16, and the powers of two.
struct Int8Pairs {
  static constexpr int64_t kTileBytes = kInt8TileBytes;

  Int8Pairs() = default;
  PORTOLAN_INLINE explicit Int8Pairs(const uint8_t* from) : tile(from) {}

  PORTOLAN_INLINE FourPairs Four(int64_t i) const {
    // -127 .. 127: sign and size.
    const Bytes q = LookUp(LoadBytes(kInt8Order.at), LoadBytes(tile + i * 64));
    const Bytes sizes = Sizes(q);
    const Bytes lower = LookUp(sizes, LoadBytes(kInt8Table.lower[0].at),
                               LoadBytes(kInt8Table.lower[1].at));
    const Bytes upper = LookUp(sizes, LoadBytes(kInt8Table.upper[0].at),
                               LoadBytes(kInt8Table.upper[1].at));
    return Join(lower, (Bytes)((UintVec)upper | ((UintVec)q & 0x80808080u)));
  }

  // The exponent, from 0.
  PORTOLAN_INLINE UintVec Exponents() const {
    return ScaleBytes(tile + kInt8Scales) - 127u;
  }

  const uint8_t* tile;
};

struct Int4Pairs {
  static constexpr int64_t kTileBytes = kInt4TileBytes;

  Int4Pairs() = default;
  PORTOLAN_INLINE explicit Int4Pairs(const uint8_t* from) : tile(from) {
    const Bytes bytes =
        LookUp(LoadBytes(kScaleOrder.at), LoadFewBytes(tile + kInt4Scales));
    row = ((UintVec)bytes & 0x07070707u) << 4;
  }

  PORTOLAN_INLINE FourPairs Four(int64_t i) const {
    // Nibbles 0 .. 7 of the words are inputs 0 .. 3, 4 .. 7 and so on.
    const Bytes order = LoadBytes(kInt4Order[i / 4].at);
    const Bytes even = LookUp(order, Word(2), Word(0));
    const Bytes odd = LookUp(order, Word(3), Word(1));
    const auto both =
        (UintVec)(i / 2 % 2 == 0 ? JoinLower(even, odd) : JoinUpper(even, odd));
    const UintVec nibbles = (i % 2 == 0 ? both : both >> 4) & 0x0f0f0f0fu;
    // The last nibble lacks the 8.
    const auto index = (Bytes)(nibbles ^ (i == 7 ? row ^ 0x08080808u : row));
    return Join(LookUp(index, LoadBytes(kInt4Table.lower[0].at),
                       LoadBytes(kInt4Table.lower[1].at)),
                LookUp(index, LoadBytes(kInt4Table.upper[0].at),
                       LoadBytes(kInt4Table.upper[1].at)));
  }

  PORTOLAN_INLINE UintVec Exponents() const {
    return (ScaleBytes(tile + kInt4Scales) >> 3) - 27u;
  }

  const uint8_t* tile;
  UintVec row;  // of the table, where its index begins

 private:
  PORTOLAN_INLINE Bytes Word(int64_t w) const {
    return LoadBytes(tile + w * 64);
  }
};

}  // namespace
}  // namespace portolan

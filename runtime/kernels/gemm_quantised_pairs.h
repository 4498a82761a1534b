#pragma once

#include "runtime/kernels/gemm_pairs.h"
#include "runtime/kernels/gemm_quantised.h"

// Products with quantised weights where two bf16 are multiplied at once
// (gemm_pairs.h). A weight is a power of two times an integer of at most eight
// bits: q of kInt8, (8 + byte % 8) * q of kInt4. Two tables of 128 bytes hold
// the halves of the bf16 of such integers, so that a lookup for each takes the
// place of conversions and multiplications, and the power of two comes last,
// where x allows it (gemm_quantised.h). Internal to the path_*.cc files.

namespace portolan {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(64)));
static_assert(sizeof(Bytes) == sizeof(UintVec));

struct alignas(64) ByteTable {
  uint8_t at[64];
};

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

PORTOLAN_INLINE inline Bytes LoadBytes(const void* from) {
  Bytes v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// 16 bytes; the others do not matter.
PORTOLAN_INLINE inline Bytes LoadFewBytes(const void* from) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v = {};
  __builtin_memcpy(&v, from, 16);
  return v;
#else
  return (Bytes)_mm512_zextsi128_si512(
      _mm_loadu_si128(static_cast<const __m128i*>(from)));
#endif
}

// table[index % 64], and {lower, upper}[index % 128].
PORTOLAN_INSTRUCTION Bytes LookUp(Bytes index, Bytes table) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) v[i] = table[index[i] & 63];
  return v;
#else
  return (Bytes)_mm512_maskz_permutexvar_epi8(~0ull, (__m512i)index,
                                              (__m512i)table);
#endif
}
PORTOLAN_INSTRUCTION Bytes LookUp(Bytes index, Bytes lower, Bytes upper) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) {
    v[i] = ((index[i] & 64) == 0 ? lower : upper)[index[i] & 63];
  }
  return v;
#else
  return (Bytes)_mm512_permutex2var_epi8((__m512i)lower, (__m512i)index,
                                         (__m512i)upper);
#endif
}

// Of every 16 bytes the lower or upper 8: a's below b's, in turns.
PORTOLAN_INSTRUCTION UintVec InterleaveLower(Bytes a, Bytes b) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) {
    v[i] = (i % 2 == 0 ? a : b)[i / 16 * 16 + i % 16 / 2];
  }
  return (UintVec)v;
#else
  return (UintVec)_mm512_maskz_unpacklo_epi8(~0ull, (__m512i)a, (__m512i)b);
#endif
}
PORTOLAN_INSTRUCTION UintVec InterleaveUpper(Bytes a, Bytes b) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) {
    v[i] = (i % 2 == 0 ? a : b)[i / 16 * 16 + 8 + i % 16 / 2];
  }
  return (UintVec)v;
#else
  return (UintVec)_mm512_maskz_unpackhi_epi8(~0ull, (__m512i)a, (__m512i)b);
#endif
}

// The same with the 8 bytes in one piece.
PORTOLAN_INSTRUCTION Bytes JoinLower(Bytes a, Bytes b) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) v[i] = i % 16 < 8 ? a[i] : b[i - 8];
  return v;
#else
  return (Bytes)_mm512_maskz_unpacklo_epi64(0xff, (__m512i)a, (__m512i)b);
#endif
}
PORTOLAN_INSTRUCTION Bytes JoinUpper(Bytes a, Bytes b) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  Bytes v;
  for (int i = 0; i < 64; ++i) v[i] = i % 16 < 8 ? a[i + 8] : b[i];
  return v;
#else
  return (Bytes)_mm512_maskz_unpackhi_epi64(0xff, (__m512i)a, (__m512i)b);
#endif
}

// |v| of signed bytes.
PORTOLAN_INSTRUCTION Bytes Sizes(Bytes v) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  for (int i = 0; i < 64; ++i) {
    v[i] = v[i] < 128 ? v[i] : static_cast<uint8_t>(-v[i]);
  }
  return v;
#else
  return (Bytes)_mm512_abs_epi8((__m512i)v);
#endif
}

// Adds to both halves of a word, but leaves those that are 0.
PORTOLAN_INSTRUCTION UintVec AddUnlessZero(UintVec v, UintVec to_add) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  for (int i = 0; i < kWidth; ++i) {
    const uint32_t lower = v[i] & 0xffffu;
    const uint32_t upper = v[i] >> 16;
    v[i] = (lower == 0 ? 0 : (lower + to_add[i]) & 0xffffu) |
           (upper == 0 ? 0 : (upper + (to_add[i] >> 16)) << 16);
  }
  return v;
#else
  return (UintVec)_mm512_mask_add_epi16(
      (__m512i)v, _mm512_test_epi16_mask((__m512i)v, (__m512i)v), (__m512i)v,
      (__m512i)to_add);
#endif
}

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

// x in range: the powers of two come last.
template <typename Pairs, int kRows, int kBlocks>
void MultiplyQuantisedPairs(const QuantisedTile<uint16_t>& t) {
  Chains<kRows, kBlocks> sum;
  LoadChains(t, sum);
  const uint16_t* x = t.x;
  const uint8_t* w = t.w;
  // One stream alone must run further ahead.
  Ahead ahead(t, Pairs::kTileBytes,
              kBlocks == 1 ? 2 * kQuantisedAhead : kQuantisedAhead);
  for (int64_t kb = 0; kb < t.k_blocks;
       ++kb, x += kBlockK, w += Pairs::kTileBytes) {
    ahead.Prefetch<Pairs::kTileBytes, kBlocks>(w);
    Chains<kRows, kBlocks> even;
    Chains<kRows, kBlocks> odd;
    ClearChains(even);
    ClearChains(odd);
    Pairs pairs[kBlocks];
    Vec scale[kBlocks][kParts];
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      pairs[b] = Pairs(w + b * t.w_block_stride);
      scale[b][0] = (Vec)((pairs[b].Exponents() + 127u) << 23);
    }
    PORTOLAN_UNROLL
    for (int64_t i = 0; i < kBlockK / kPairedInputs; ++i) {
      FourPairs four[kBlocks];
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks; ++b) four[b] = pairs[b].Four(i);
      PORTOLAN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const uint16_t* from = x + r * t.x_stride + i * kPairedInputs;
        const UintVec x_even = SplatPair(from);
        const UintVec x_odd = SplatPair(from + 2);
        PORTOLAN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          even[r][b][0] = AddPairs(x_even, four[b].even, even[r][b][0]);
          odd[r][b][0] = AddPairs(x_odd, four[b].odd, odd[r][b][0]);
        }
      }
    }
    AddScaledChains(even, odd, scale, sum);
  }
  StoreChains(t, sum);
}

// Tiles as ChainedPairs reads them.
template <typename Pairs>
void UnpackPairs(const uint8_t* w, int64_t num_tiles, uint16_t* to) {
  for (int64_t t = 0; t < num_tiles; ++t, w += Pairs::kTileBytes) {
    const Pairs pairs(w);
    const UintVec exponent = (pairs.Exponents() & 0x1ffu) << 7;
    const UintVec both = exponent | exponent << 16;
    // A zero has no exponent to add to.
    const auto store = [&](UintVec v) PORTOLAN_INLINE {
      v = AddUnlessZero(v, both);
      __builtin_memcpy(to, &v, sizeof(v));
      to += 2 * kLanes;
    };
    PORTOLAN_UNROLL
    for (int64_t i = 0; i < kBlockK / kPairedInputs; ++i) {
      const FourPairs four = pairs.Four(i);
      store(four.even);
      store(four.odd);
    }
  }
}

// Blocks of K that are unpacked at a time: two output blocks of them leave room
// for x and the next weights in the first-level cache.
constexpr int64_t kPairsKBlocks = 8;

// Lines of a tile, where it begins anywhere in one.
template <typename Pairs>
constexpr int64_t kPairsLines = (Pairs::kTileBytes + 63) / 64;

// One group of output blocks over all K: unpacks a stretch of K, multiplies it
// and meanwhile fetches the next one.
template <typename Pairs, int kBlocks>
void MultiplyUnpackedBlocks(const MultiplyArgs& args, const uint8_t* w,
                            float* c) {
  alignas(64) uint16_t unpacked[kBlocks * kPairsKBlocks * kTileSize];
  VectorTile<uint16_t> tile{};
  tile.x_stride = args.x_k_blocks * kBlockK;
  tile.w = unpacked;
  tile.c = c;
  tile.c_stride = args.c_stride;
  tile.w_last = static_cast<const uint16_t*>(args.w_end) - kLine;
  tile.next_stride = args.w_block_stride / 2;
  for (int64_t kb = 0; kb < args.k_blocks; kb += kPairsKBlocks) {
    const int64_t left = args.k_blocks - kb;
    tile.k_blocks = left < kPairsKBlocks ? left : kPairsKBlocks;
    tile.w_block_stride = tile.k_blocks * kTileSize;
    tile.x = static_cast<const uint16_t*>(args.x) +
             (args.first_k_block + kb) * kBlockK;
    tile.accumulate = args.accumulate || kb > 0;
    const uint8_t* packed = w + kb * Pairs::kTileBytes;
    for (int b = 0; b < kBlocks; ++b) {
      UnpackPairs<Pairs>(packed + b * args.w_block_stride, tile.k_blocks,
                         unpacked + b * tile.w_block_stride);
    }
    const uint8_t* next = left > kPairsKBlocks
                              ? packed + kPairsKBlocks * Pairs::kTileBytes
                              : w + kBlocks * args.w_block_stride;
    tile.next = static_cast<const uint16_t*>(static_cast<const void*>(next));
    MultiplyRowTiles<PairSteps<ChainedPairs>, kBlocks>(
        tile, args.rows, tile.next < tile.w_last ? kPairsLines<Pairs> : 0,
        /*cold=*/false);
  }
}

// Any number of rows, any x.
template <typename Pairs>
void MultiplyUnpackedPairs(const MultiplyArgs& args) {
  const auto* w = static_cast<const uint8_t*>(args.w);
  float* c = args.c;
  int64_t block = 0;
  for (; block + 2 <= args.num_blocks; block += 2) {
    MultiplyUnpackedBlocks<Pairs, 2>(args, w + block * args.w_block_stride,
                                     c + block * kLanes);
  }
  if (block < args.num_blocks) {
    MultiplyUnpackedBlocks<Pairs, 1>(args, w + block * args.w_block_stride,
                                     c + block * kLanes);
  }
}

// Rows of a register tile: few of two output blocks, for memory serves two
// streams better than one, or many of one, which share the lookups.
constexpr int64_t kWidePairRows = 4;
constexpr int64_t kTallPairRows = 12;

// By number of rows - 1.
template <typename Pairs, int kBlocks>
constexpr QuantisedFunction<uint16_t> kWidePairs[kWidePairRows] = {
    MultiplyQuantisedPairs<Pairs, 1, kBlocks>,
    MultiplyQuantisedPairs<Pairs, 2, kBlocks>,
    MultiplyQuantisedPairs<Pairs, 3, kBlocks>,
    MultiplyQuantisedPairs<Pairs, 4, kBlocks>};
template <typename Pairs>
constexpr QuantisedFunction<uint16_t> kTallPairs[kTallPairRows] = {
    MultiplyQuantisedPairs<Pairs, 1, 1>,  MultiplyQuantisedPairs<Pairs, 2, 1>,
    MultiplyQuantisedPairs<Pairs, 3, 1>,  MultiplyQuantisedPairs<Pairs, 4, 1>,
    MultiplyQuantisedPairs<Pairs, 5, 1>,  MultiplyQuantisedPairs<Pairs, 6, 1>,
    MultiplyQuantisedPairs<Pairs, 7, 1>,  MultiplyQuantisedPairs<Pairs, 8, 1>,
    MultiplyQuantisedPairs<Pairs, 9, 1>,  MultiplyQuantisedPairs<Pairs, 10, 1>,
    MultiplyQuantisedPairs<Pairs, 11, 1>, MultiplyQuantisedPairs<Pairs, 12, 1>};

// Rows up to which looking up the weights for each register tile is faster than
// unpacking them.
constexpr int64_t kFewPairRows = 20;

template <typename Pairs>
void MultiplyPairsInRange(const MultiplyArgs& args) {
  if (args.rows > kFewPairRows) {
    MultiplyUnpackedPairs<Pairs>(args);
  } else if (args.rows > kWidePairRows) {
    MultiplyQuantised<kTallPairRows, 1, uint16_t>(args, kTallPairs<Pairs>,
                                                  kTallPairs<Pairs>);
  } else {
    MultiplyQuantised<kWidePairRows, 2, uint16_t>(args, kWidePairs<Pairs, 2>,
                                                  kWidePairs<Pairs, 1>);
  }
}

// As InRange(), of bf16.
bool PairsInRange(const void* x, int64_t count) {
  typedef uint16_t Halves __attribute__((vector_size(64)));
  constexpr auto kLeast = static_cast<uint16_t>(Exponent(127 - 60) >> 16);
  constexpr auto kSpan =
      static_cast<uint16_t>((Exponent(127 + 60) >> 16) - kLeast);
  const auto* from = static_cast<const uint16_t*>(x);
  UintVec outside = {};
  for (int64_t i = 0; i < count; i += 32) {
    Halves bits;
    __builtin_memcpy(&bits, from + i, sizeof(bits));
    bits &= 0x7fff;
    outside |= (UintVec)((bits - kLeast > kSpan) & (bits != 0));
  }
  uint32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= outside[i];
  return any == 0;
}

template <typename Pairs>
constexpr void SetPairs(QuantisedKernel& kernel) {
  kernel.few.x_element_bytes = 2;
  kernel.few.row_group = kTileRows;
  kernel.few.prepare = PairRows;
  kernel.few.multiply = MultiplyUnpackedPairs<Pairs>;
  kernel.few_rows = INT64_MAX;
  kernel.multiply_in_range = MultiplyPairsInRange<Pairs>;
  kernel.in_range = PairsInRange;
}

constexpr KernelTable WithQuantisedPairs(KernelTable table) {
  table = WithQuantised(table);
  SetPairs<Int8Pairs>(table.int8);
  SetPairs<Int4Pairs>(table.int4);
  return table;
}

}  // namespace
}  // namespace portolan

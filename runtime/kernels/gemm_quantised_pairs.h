#pragma once

#include "runtime/kernels/gemm_quantised.h"
#include "runtime/kernels/quantised_pairs.h"

// Products with quantised weights where two bf16 are multiplied at once. The
// power of two of a weight comes last, where x allows it (gemm_int8.h).
// Internal to the path_*.cc files.

namespace portolan {
namespace {

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

#pragma once

#include "runtime/kernels/gemm_vector.h"

// The matrix product with VDPBF16PS, which takes two inputs at once: it adds
// the product of the upper halves of a 32-bit lane and then that of the lower
// ones, each rounded, denormals flushed. Two neighbours of an even or of an odd
// chain in one lane, the earlier one above, so give the bits that the order of
// numerics prescribes. 16 lanes only. Internal to the path_*.cc files.

// One instruction; its stand-in where there is none stays a function, or it
// would fill the unrolled loops.
#if defined(PORTOLAN_EMULATED_WIDTH)
#define PORTOLAN_INSTRUCTION __attribute__((noinline))
#else
#define PORTOLAN_INSTRUCTION PORTOLAN_INLINE inline
#endif

namespace portolan {
namespace {

static_assert(kWidth == 16);

// Inputs k .. k + 3 of a row as [k + 2, k, k + 3, k + 1]: one word for the even
// chain and one for the odd.
constexpr int64_t kPairedInputs = 4;

PORTOLAN_INLINE inline UintVec LoadPairs(const void* from) {
  UintVec v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

PORTOLAN_INLINE inline UintVec SplatPair(const uint16_t* from) {
  uint32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
#if defined(PORTOLAN_EMULATED_WIDTH)
  return word - UintVec{};
#else
  return (UintVec)_mm512_set1_epi32(static_cast<int>(word));
#endif
}

// sum + upper a * upper b, then + lower a * lower b.
PORTOLAN_INSTRUCTION Vec AddPairs(UintVec a, UintVec b, Vec sum) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  sum = MultiplyAdd((Vec)(a & 0xffff0000u), (Vec)(b & 0xffff0000u), sum);
  return MultiplyAdd((Vec)(a << 16), (Vec)(b << 16), sum);
#else
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
}

// The lower halves of `lower` below the upper halves of `upper`.
PORTOLAN_INLINE inline UintVec JoinHalves(UintVec upper, UintVec lower) {
#if defined(PORTOLAN_EMULATED_WIDTH)
  return (upper & 0xffff0000u) | (lower & 0xffffu);
#else
  return (UintVec)_mm512_mask_blend_epi16(0xaaaaaaaau, (__m512i)lower,
                                          (__m512i)upper);
#endif
}

// Weights of four inputs, [pair of K][16 outputs][2] as they are packed, for
// one of the chains.
struct PackedPairs {
  template <bool kOdd>
  PORTOLAN_INLINE static UintVec Load(const uint16_t* w) {
    const UintVec first = LoadPairs(w);
    const UintVec second = LoadPairs(w + 2 * kLanes);
    return kOdd ? JoinHalves(first, second >> 16)
                : JoinHalves(first << 16, second);
  }
};

// The same as unpacking a quantised tile left them: 16 words for the even
// chains, then 16 for the odd.
struct ChainedPairs {
  template <bool kOdd>
  PORTOLAN_INLINE static UintVec Load(const uint16_t* w) {
    return LoadPairs(w + (kOdd ? 2 * kLanes : 0));
  }
};

// x as PairRows() wrote it, two inputs of each parity in a step.
template <typename Weights>
struct PairSteps {
  using Element = uint16_t;
  static constexpr int64_t kInputs = kPairedInputs;

  template <int kRows, int kBlocks>
  static void Step(const VectorTile<uint16_t>& t, const uint16_t* x,
                   const uint16_t* w, Vec (&even)[kRows][kBlocks][1],
                   Vec (&odd)[kRows][kBlocks][1]) {
    StepChains<false>(t, x, w, even);
    StepChains<true>(t, x + 2, w, odd);
  }

 private:
  template <bool kOdd, int kRows, int kBlocks>
  static void StepChains(const VectorTile<uint16_t>& t, const uint16_t* x,
                         const uint16_t* four,
                         Vec (&chain)[kRows][kBlocks][1]) {
    // As in FloatSteps.
    asm volatile("" : "+r"(four));
    UintVec w[kBlocks];
    PORTOLAN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      w[b] = Weights::template Load<kOdd>(four + b * t.w_block_stride);
    }
    PORTOLAN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const UintVec x_row = SplatPair(x + r * t.x_stride);
      PORTOLAN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        chain[r][b][0] = AddPairs(x_row, w[b], chain[r][b][0]);
      }
    }
  }
};

// bf16 rows [num_rows, k_blocks * 32], zeros beyond `cols`, every four inputs
// in the order of kPairedInputs.
void PairRows(const void* const* rows, int64_t num_rows, int64_t cols,
              int64_t k_blocks, void* x) {
  auto* out = static_cast<uint16_t*>(x);
  const int64_t padded = k_blocks * kBlockK;
  for (int64_t row = 0; row < num_rows; ++row, out += padded) {
    const auto* in = static_cast<const uint16_t*>(rows[row]);
    int64_t k = 0;
    for (; k + kBlockK <= cols; k += kBlockK) {
      typedef uint64_t Fours __attribute__((vector_size(64)));
      Fours four;
      __builtin_memcpy(&four, in + k, sizeof(four));
      four = (four >> 32 & 0xffffu) | (four << 16 & 0xffff0000u) |
             (four >> 16 & 0xffff00000000u) | (four << 32 & 0xffffull << 48);
      __builtin_memcpy(out + k, &four, sizeof(four));
    }
    for (; k < padded; k += kPairedInputs) {
      const auto at = [&](int64_t i) {
        return k + i < cols ? in[k + i] : uint16_t{0};
      };
      out[k] = at(2);
      out[k + 1] = at(0);
      out[k + 2] = at(3);
      out[k + 3] = at(1);
    }
  }
}

int64_t PeakPairs(int64_t iterations, float* sink) {
  constexpr int kChains = 24;
  const UintVec a = LoadPairs(sink);
  Vec chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Splat(static_cast<float>(i));
  for (int64_t i = 0; i < iterations; ++i) {
    PORTOLAN_UNROLL
    for (int c = 0; c < kChains; ++c) chain[c] = AddPairs(a, a, chain[c]);
  }
  Vec sum = {};
  for (int i = 0; i < kChains; ++i) sum += chain[i];
  StoreVec(sink, sum);
  return iterations * kChains * kWidth * 4;
}

constexpr KernelTable PairTable() {
  KernelTable table = VectorTable();
  table.bf16_few.x_element_bytes = 2;
  table.bf16_few.prepare = PairRows;
  table.bf16_few.multiply = MultiplyVector<PairSteps<PackedPairs>>;
  table.bf16_many = table.bf16_few;
  table.peak = PeakPairs;
  return table;
}

}  // namespace
}  // namespace portolan

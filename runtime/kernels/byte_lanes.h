#pragma once

#include "runtime/kernels/gemm_pairs.h"

// Vectors of 64 bytes: lookups in tables and the moves that make bf16 of their
// bytes. AVX512-VBMI, or loops in a test. Internal to the path_*.cc files.

namespace portolan {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(64)));
static_assert(sizeof(Bytes) == sizeof(UintVec));

struct alignas(64) ByteTable {
  uint8_t at[64];
};

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

}  // namespace
}  // namespace portolan

#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Vectors of the widest kind that this translation unit may use. Internal to
// the path_*.cc files; everything has internal linkage on purpose, see
// kernel_table.h. PORTOLAN_EMULATED_WIDTH lets tests run a wide path's source
// on a narrow machine.

#if defined(__clang__)
#define PORTOLAN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PORTOLAN_UNROLL _Pragma("GCC unroll 16")
#endif

// Where registers are counted, a call is one too many.
#define PORTOLAN_INLINE __attribute__((always_inline))

namespace portolan {
namespace {

#if defined(PORTOLAN_EMULATED_WIDTH)
constexpr int kWidth = PORTOLAN_EMULATED_WIDTH;
#elif defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kWidth * 2)));

constexpr int kLanes = 16;  // of every sum, whatever the width
constexpr int kParts = kLanes / kWidth;

inline Vec LoadVec(const void* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline void StoreVec(void* to, Vec v) { __builtin_memcpy(to, &v, sizeof(v)); }

inline Vec Splat(float x) {
#if defined(PORTOLAN_EMULATED_WIDTH) || !defined(__AVX2__)
  return x - Vec{};  // x itself, also where x is -0
#elif defined(__AVX512F__)
  return _mm512_set1_ps(x);
#else
  return _mm256_set1_ps(x);
#endif
}

// a * b + c, rounded once.
inline Vec MultiplyAdd(Vec a, Vec b, Vec c) {
#if defined(PORTOLAN_EMULATED_WIDTH) || !defined(__AVX2__)
  for (int i = 0; i < kWidth; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#elif defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#else
  return _mm256_fmadd_ps(a, b, c);
#endif
}

inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// 16, or `n` < 16, elements as kWidth-wide parts; what is missing is `fill`.
struct Lanes {
  Vec part[kParts];
};

inline Lanes SplatLanes(float x) {
  Lanes lanes;
  PORTOLAN_UNROLL
  for (int i = 0; i < kParts; ++i) lanes.part[i] = Splat(x);
  return lanes;
}

inline Lanes Load(const float* from) {
  Lanes lanes;
  PORTOLAN_UNROLL
  for (int i = 0; i < kParts; ++i) lanes.part[i] = LoadVec(from + i * kWidth);
  return lanes;
}

inline void Store(float* to, const Lanes& lanes) {
  PORTOLAN_UNROLL
  for (int i = 0; i < kParts; ++i) StoreVec(to + i * kWidth, lanes.part[i]);
}

inline Lanes LoadSome(const float* from, int64_t n, float fill) {
  float whole[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) whole[i] = i < n ? from[i] : fill;
  return Load(whole);
}

inline void StoreSome(float* to, int64_t n, const Lanes& lanes) {
  float whole[kLanes];
  Store(whole, lanes);
  for (int64_t i = 0; i < n; ++i) to[i] = whole[i];
}

// The fixed tree of every sum: lane i and i + 8, i + 4, i + 2, i + 1.
inline float Sum(const Lanes& lanes) {
  float s[kLanes];
  Store(s, lanes);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  }
  return s[0];
}

inline float Largest(const Lanes& lanes) {
  float s[kLanes];
  Store(s, lanes);
  float largest = s[0];
  for (int i = 1; i < kLanes; ++i) largest = s[i] > largest ? s[i] : largest;
  return largest;
}

// bf16 as float, and back: to nearest even, a NaN stays a NaN.
inline Vec Widen(const uint16_t* from) {
  HalfVec half;
  __builtin_memcpy(&half, from, sizeof(half));
  return (Vec)(__builtin_convertvector(half, UintVec) << 16);
}

inline void Round(Vec v, uint16_t* to) {
  const UintVec bits = (UintVec)v;
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UintVec nan = (bits >> 16) | 0x40u;
  const UintVec result = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  const HalfVec half = __builtin_convertvector(result, HalfVec);
  __builtin_memcpy(to, &half, sizeof(half));
}

inline void RoundLanes(const Lanes& lanes, uint16_t* to) {
  PORTOLAN_UNROLL
  for (int i = 0; i < kParts; ++i) Round(lanes.part[i], to + i * kWidth);
}

inline void RoundSome(const Lanes& lanes, int64_t n, uint16_t* to) {
  uint16_t whole[kLanes];
  RoundLanes(lanes, whole);
  for (int64_t i = 0; i < n; ++i) to[i] = whole[i];
}

// 2^n for n in [-126, 127].
inline Vec PowerOfTwo(IntVec n) { return (Vec)((n + 127) << 23); }

// e^x within about 1 ulp; 0 where the result would be denormal, infinity where
// it is too large. Argument reduction and polynomial as in Cephes' expf
// (S. Moshier); only products and sums, so every path gives the same bits.
inline Vec ExpVec(Vec x) {
  constexpr float kLowest = -87.33654f;  // ln of the least normal float
  constexpr float kHighest = 88.72283f;  // ln of the largest
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Vec low = Splat(kLowest);
  const Vec high = Splat(kHighest);
  const Vec clamped = x < low ? low : (x > high ? high : x);
  const Vec shifted = clamped * 1.44269504088896341f + kMagic;
  const Vec whole = shifted - kMagic;
  const IntVec n = (IntVec)shifted - (IntVec)Splat(kMagic);
  const Vec r = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vec p = Splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec y = (p * (r * r) + r) + 1.0f;
  const IntVec half = n >> 1;
  const Vec result = (y * PowerOfTwo(half)) * PowerOfTwo(n - half);
  const Vec infinity = Splat(__builtin_inff());
  return x < low ? Vec{} : (x > high ? infinity : result);
}

inline Vec SigmoidVec(Vec x) { return 1.0f / (1.0f + ExpVec(-x)); }

inline Vec SiluVec(Vec x) { return x / (1.0f + ExpVec(-x)); }

}  // namespace
}  // namespace portolan

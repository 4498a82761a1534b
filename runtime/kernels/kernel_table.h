#pragma once

#include <cstdint>

namespace portolan {

// The kernels of one CPU path, as plain functions on plain memory.
//
// The files that define tables are compiled with instruction sets which the
// rest of the program must not use. So this header has no inline function (the
// linker might keep the copy with the wide instructions), and bf16 travels as
// uint16_t.

// One call of a matrix product: c[rows, 16 * num_blocks] over packed weights.
struct MultiplyArgs {
  const void* x = nullptr;     // as `prepare` of the same kernel wrote it
  int64_t x_k_blocks = 0;      // K blocks that were prepared
  int64_t first_k_block = 0;   // the one to begin with
  int64_t rows = 0;            // at least 1
  const void* w = nullptr;     // tile of the first output and K block
  int64_t w_block_stride = 0;  // elements between output blocks
  int64_t num_blocks = 0;      // output blocks
  int64_t k_blocks = 0;        // K blocks, one after the other in memory
  float* c = nullptr;          // room for rows rounded up to 32
  int64_t c_stride = 0;        // floats between rows of c
  bool accumulate = false;     // add to c instead of overwriting it
  // Weights soon to be read end here: prefetch. Null: they are in the cache.
  const void* w_end = nullptr;
};

struct GemmKernel {
  // Bytes that `prepare` writes for one element of x.
  int64_t x_element_bytes = 4;
  // Rows are processed in groups of this many; `prepare` pads to it.
  int64_t row_group = 1;
  // Bracket the calls of one task on a thread (tile configuration); or null.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
  // Brings `num_rows` rows of `cols` elements into the kernel's form, K padded
  // with zeros to k_blocks * 32.
  void (*prepare)(const void* const* rows, int64_t num_rows, int64_t cols,
                  int64_t k_blocks, void* x) = nullptr;
  void (*multiply)(const MultiplyArgs& args) = nullptr;
};

// Products with quantised weights (weight_format.h). Up to few_rows rows of
// bf16 x are multiplied straight from them: `few`, for which w and
// w_block_stride count bytes and w_end is not null. For all else `unpack`
// writes the bf16 tiles that they stand for.
struct QuantisedKernel {
  GemmKernel few;
  int64_t few_rows = 0;
  // Or null: the same bits in less time, where in_range() holds of all that
  // `prepare` wrote.
  void (*multiply_in_range)(const MultiplyArgs& args) = nullptr;
  bool (*in_range)(const void* x, int64_t count) = nullptr;
  void (*unpack)(const void* tiles, int64_t num_tiles, uint16_t* to) = nullptr;
};

struct KernelTable {
  // bf16 x. From `many_rows` rows on, `bf16_many` is the faster one.
  GemmKernel bf16_few;
  GemmKernel bf16_many;
  int64_t many_rows = 0;
  // f32 x with bf16 weights, and with f32 weights in the same tiles.
  GemmKernel f32;
  GemmKernel f32_weights;
  QuantisedKernel int8;
  QuantisedKernel int4;

  // y = x / sqrt(mean(x^2) + eps) * weight. Each of y_f32 and y_bf16 may be
  // null; y_f32 may be x; a null weight is all ones.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps,
                   float* y_f32, uint16_t* y_bf16);
  // x += y.
  void (*add)(float* x, const float* y, int64_t n);
  // Half-split rotation of 2 * half elements in place.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
  void (*round)(const float* x, int64_t n, uint16_t* y);
  void (*softmax)(float* x, int64_t n);
  void (*sigmoid)(float* x, int64_t n);
  // Softmax numerators in place over `n` scores (a multiple of 16, the first at
  // an absolute position that is one too), zeros outside [begin, end). Returns
  // their sum. With `to_bf16` the row becomes bf16, from its start on.
  float (*attention_weights)(float* scores, int64_t n, int64_t begin,
                             int64_t end, float scale, bool to_bf16);
  // y = x / divisor; exactly one of y_f32 and y_bf16 is not null.
  void (*divide)(const float* x, int64_t n, float divisor, float* y_f32,
                 uint16_t* y_bf16);
  // For each row: silu(c[row][0..15]) * c[row][16..31], 16 results at
  // h[row] as bf16 or f32.
  void (*swiglu)(const float* c, int64_t c_stride, int64_t rows, void* const* h,
                 bool to_bf16);

  // Multiplies and adds in registers only, the fastest way the path knows;
  // returns the floating-point operations done. `sink`: 256 floats.
  int64_t (*peak)(int64_t iterations, float* sink);
};

const KernelTable& ScalarTable();     // no more than the base instruction set
const KernelTable& ScalarFmaTable();  // the same source where FMA exists
const KernelTable& Avx2Table();
const KernelTable& Avx512Table();
const KernelTable& Avx512Bf16Table();
const KernelTable& AmxTable();

// The instruction that Avx512Bf16Table() is made of, a PairProduct
// (pair_order.h).
void Avx512Bf16PairProduct(const uint32_t* x, const uint32_t* w, float* sum);

}  // namespace portolan

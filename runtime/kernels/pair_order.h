#pragma once

#include <cstdint>

namespace portolan {

// For each of 16 lanes: sum[i] plus the products of the two bf16 in x[i] with
// those in w[i]. Plain memory, no alignment.
using PairProduct = void (*)(const uint32_t* x, const uint32_t* w, float* sum);

// True if `product` rounds as the kernels of gemm_pairs.h take for granted:
// the upper halves first, then the lower ones, each as one fused step, to
// nearest even, with denormals read and written as zeros.
//
// That is what Intel's manual (SDM, VDPBF16PS, "Operation") says of the
// instruction, whatever MXCSR holds, for it is "neither consulted nor updated":
//
//   // FP32 FMA with daz in, ftz out and RNE rounding.
//   srcdest.fp32[i] += make_fp32(src1.bfloat16[2*i+1]) * make_fp32(t.bfloat[1])
//   srcdest.fp32[i] += make_fp32(src1.bfloat16[2*i+0]) * make_fp32(t.bfloat[0])
//
// A processor or an emulator that does otherwise would silently give other
// bits than the other paths; hence a look at 32 sums, each of which some other
// order or rounding gets wrong. Takes about a microsecond.
bool HasPairOrder(PairProduct product);

}  // namespace portolan

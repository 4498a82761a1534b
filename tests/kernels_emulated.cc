// The sources of path_avx512.cc, path_avx512bf16.cc and path_amx.cc without
// their instructions.
#define PORTOLAN_EMULATED_WIDTH 16

#include "tests/emulated_tiles.h"
// After the stand-ins that it calls.
#include "runtime/kernels/gemm_amx.h"
#include "runtime/kernels/gemm_quantised_pairs.h"
#include "runtime/kernels/row_kernels.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

constexpr KernelTable kAvx512 = WithRowKernels(WithQuantised(VectorTable()));
constexpr KernelTable kAvx512Bf16 =
    WithRowKernels(WithQuantisedPairs(PairTable()));
constexpr KernelTable kAmx = WithRowKernels(WithQuantised(TileTable()));

}  // namespace

const KernelTable& EmulatedAvx512Table() { return kAvx512; }
const KernelTable& EmulatedAvx512Bf16Table() { return kAvx512Bf16; }
const KernelTable& EmulatedAmxTable() { return kAmx; }

}  // namespace portolan

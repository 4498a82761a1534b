// The sources of path_avx512.cc and path_amx.cc without their instructions.
#define PORTOLAN_EMULATED_WIDTH 16

#include "tests/emulated_tiles.h"
// After the stand-ins that it calls.
#include "runtime/kernels/gemm_amx.h"
#include "runtime/kernels/gemm_quantised.h"
#include "runtime/kernels/row_kernels.h"
#include "tests/kernel_test_util.h"

namespace portolan {
namespace {

constexpr KernelTable kAvx512 = WithRowKernels(WithQuantised(VectorTable()));
constexpr KernelTable kAmx = WithRowKernels(WithQuantised(TileTable()));

}  // namespace

const KernelTable& EmulatedAvx512Table() { return kAvx512; }
const KernelTable& EmulatedAmxTable() { return kAmx; }

}  // namespace portolan

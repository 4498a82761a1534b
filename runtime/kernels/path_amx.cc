#include "runtime/kernels/gemm_amx.h"
#include "runtime/kernels/gemm_quantised.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

// Few rows run in plain vectors, though a processor with AMX has AVX512-BF16:
// the cores of such processors take two cycles for VDPBF16PS and for a lookup
// in two registers. One row of two output blocks costs 181 cycles a tile of
// int8 in pairs and 143 in vectors, 192 and 150 of int4, three rows 310 and
// 281, 337 and 300 (llvm-mca 19, sapphirerapids).
constexpr KernelTable kTable = WithRowKernels(WithQuantised(TileTable()));

}  // namespace

const KernelTable& AmxTable() { return kTable; }

}  // namespace portolan

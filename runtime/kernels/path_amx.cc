#include "runtime/kernels/gemm_amx.h"
#include "runtime/kernels/gemm_quantised.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

constexpr KernelTable kTable = WithRowKernels(WithQuantised(TileTable()));

}  // namespace

const KernelTable& AmxTable() { return kTable; }

}  // namespace portolan

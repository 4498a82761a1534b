#include "runtime/kernels/gemm_quantised.h"
#include "runtime/kernels/gemm_vector.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

constexpr KernelTable kTable = WithRowKernels(WithQuantised(VectorTable()));

}  // namespace

const KernelTable& Avx512Table() { return kTable; }

}  // namespace portolan

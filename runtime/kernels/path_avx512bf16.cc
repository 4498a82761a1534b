#include "runtime/kernels/gemm_quantised_pairs.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

constexpr KernelTable kTable = WithRowKernels(WithQuantisedPairs(PairTable()));

}  // namespace

const KernelTable& Avx512Bf16Table() { return kTable; }

}  // namespace portolan

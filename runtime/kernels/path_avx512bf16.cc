#include "runtime/kernels/gemm_quantised_pairs.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

constexpr KernelTable kTable = WithRowKernels(WithQuantisedPairs(PairTable()));

}  // namespace

const KernelTable& Avx512Bf16Table() { return kTable; }

void Avx512Bf16PairProduct(const uint32_t* x, const uint32_t* w, float* sum) {
  StoreVec(sum, AddPairs(LoadPairs(x), LoadPairs(w), LoadVec(sum)));
}

}  // namespace portolan

#include "runtime/kernels/gemm_quantised_reference.h"
#include "runtime/kernels/gemm_reference.h"
#include "runtime/kernels/row_kernels.h"

namespace portolan {
namespace {

constexpr KernelTable kTable =
    WithRowKernels(WithQuantisedReference(ReferenceTable()));

}  // namespace

const KernelTable& ScalarTable() { return kTable; }

}  // namespace portolan

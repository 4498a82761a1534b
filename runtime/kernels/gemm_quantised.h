#pragma once

#include "runtime/kernels/gemm_int4.h"
#include "runtime/kernels/gemm_int8.h"

// The table of products with quantised weights in vector registers. Internal to
// the path_*.cc files.

namespace portolan {
namespace {

// Rows up to which register tiles are faster than unpacking.
constexpr int kFewInt8Rows = 6 * kQuantisedRows;
constexpr int kFewInt4Rows = kQuantisedRows;

constexpr QuantisedKernel QuantisedVector(int64_t few_rows,
                                          void (*multiply)(const MultiplyArgs&),
                                          void (*unpack)(const void*, int64_t,
                                                         uint16_t*)) {
  QuantisedKernel kernel;
  kernel.few.row_group = kQuantisedRows;
  kernel.few.prepare = WidenRows<uint16_t>;
  kernel.few.multiply = multiply;
  kernel.few_rows = few_rows;
  kernel.unpack = unpack;
  return kernel;
}

constexpr KernelTable WithQuantised(KernelTable table) {
  // Matrix tiles take over where they do so from vectors.
  const int64_t few_int8 =
      table.many_rows > 0 ? table.many_rows - 1 : kFewInt8Rows;
  const int64_t few_int4 =
      table.many_rows > 0 ? table.many_rows - 1 : kFewInt4Rows;
  table.int8 = QuantisedVector(few_int8, MultiplyInt8Rows, UnpackInt8);
  table.int8.multiply_in_range = MultiplyInt8InRange;
  table.int8.in_range = InRange;
  table.int4 = QuantisedVector(few_int4, MultiplyInt4Rows, UnpackInt4);
  return table;
}

}  // namespace
}  // namespace portolan

#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

// The instruction sets that kernels are written for, in rising preference.
// Every path gives the same bits. kAvx512Bf16 needs AVX512-BF16 and -VBMI, and
// that the former rounds as the manual says (pair_order.h).
enum class CpuPath : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// "scalar", "avx2", "avx512", "avx512bf16", "amx".
std::string_view CpuPathName(CpuPath path);

// Errors: kInvalidArgument naming the text and the known names.
absl::StatusOr<CpuPath> ParseCpuPath(std::string_view text);

// True if this processor has the instructions and the system lets programs use
// them; the first question about AMX also asks the kernel for permission.
// Thread-safe.
bool CpuSupports(CpuPath path);

// The most preferred path that this machine supports. Thread-safe.
CpuPath BestCpuPath();

// All supported paths, in rising preference; kScalar is always there.
std::vector<CpuPath> SupportedCpuPaths();

}  // namespace portolan

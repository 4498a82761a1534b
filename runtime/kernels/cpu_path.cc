#include "runtime/kernels/cpu_path.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/pair_order.h"

namespace portolan {
namespace {

constexpr std::array<CpuPath, 5> kPaths = {CpuPath::kScalar, CpuPath::kAvx2,
                                           CpuPath::kAvx512,
                                           CpuPath::kAvx512Bf16, CpuPath::kAmx};

struct CpuFeatures {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512bf16 = false;
  bool amx = false;
};

// The register state that the system saves at a context switch (XCR0).
uint64_t SavedState() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives the 8 KiB of tile data only to processes that ask for it.
bool AskForTiles() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool Has(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

CpuFeatures Detect() {
  CpuFeatures found;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return found;
  const bool fma = Has(c, 12);
  const bool xsave = Has(c, 27);
  if (!xsave || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return found;
  const uint64_t saved = SavedState();
  const bool ymm = (saved & 0x6u) == 0x6u;
  const bool zmm = (saved & 0xe6u) == 0xe6u;
  const bool tiles = (saved & 0x60000u) == 0x60000u;
  found.avx2 = ymm && fma && Has(b, 5);
  found.avx512 = found.avx2 && zmm && Has(b, 16) && Has(b, 17) && Has(b, 30) &&
                 Has(b, 31);  // F, DQ, BW, VL
  found.amx = found.avx512 && tiles && Has(d, 22) && Has(d, 24) &&
              AskForTiles();  // BF16, TILE
  const bool vbmi = Has(c, 1);
  found.avx512bf16 = found.avx512 && vbmi &&
                     __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
                     Has(a, 5) && HasPairOrder(Avx512Bf16PairProduct);
  return found;
}

const CpuFeatures& Features() {
  static const CpuFeatures features = Detect();
  return features;
}

}  // namespace

std::string_view CpuPathName(CpuPath path) {
  switch (path) {
    case CpuPath::kScalar:
      return "scalar";
    case CpuPath::kAvx2:
      return "avx2";
    case CpuPath::kAvx512:
      return "avx512";
    case CpuPath::kAvx512Bf16:
      return "avx512bf16";
    case CpuPath::kAmx:
      return "amx";
  }
  return "unknown";
}

absl::StatusOr<CpuPath> ParseCpuPath(std::string_view text) {
  for (const CpuPath path : kPaths) {
    if (text == CpuPathName(path)) return path;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::string_view(text.data(), text.size()),
                   "\" is no CPU path; write scalar, avx2, avx512, "
                   "avx512bf16 or amx"));
}

bool CpuSupports(CpuPath path) {
  switch (path) {
    case CpuPath::kScalar:
      return true;
    case CpuPath::kAvx2:
      return Features().avx2;
    case CpuPath::kAvx512:
      return Features().avx512;
    case CpuPath::kAvx512Bf16:
      return Features().avx512bf16;
    case CpuPath::kAmx:
      return Features().amx;
  }
  return false;
}

CpuPath BestCpuPath() { return SupportedCpuPaths().back(); }

std::vector<CpuPath> SupportedCpuPaths() {
  std::vector<CpuPath> paths;
  for (const CpuPath path : kPaths) {
    if (CpuSupports(path)) paths.push_back(path);
  }
  return paths;
}

}  // namespace portolan

#include "runtime/base/units.h"

#include <array>
#include <charconv>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace portolan {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};

constexpr std::array<Unit, 14> kUnits = {{{"", 1},
                                          {"b", 1},
                                          {"kb", 1e3},
                                          {"mb", 1e6},
                                          {"gb", 1e9},
                                          {"tb", 1e12},
                                          {"kib", 0x1p10},
                                          {"mib", 0x1p20},
                                          {"gib", 0x1p30},
                                          {"tib", 0x1p40},
                                          {"k", 0x1p10},
                                          {"m", 0x1p20},
                                          {"g", 0x1p30},
                                          {"t", 0x1p40}}};

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const size_t digits = text.find_first_not_of("0123456789.");
  const std::string_view number = text.substr(0, digits);
  const std::string unit = absl::AsciiStrToLower(absl::StripAsciiWhitespace(
      digits == std::string_view::npos
          ? absl::string_view()
          : absl::string_view(text.data() + digits, text.size() - digits)));
  double value = 0;
  if (absl::SimpleAtod(absl::string_view(number.data(), number.size()),
                       &value)) {
    for (const Unit& known : kUnits) {
      if (known.name == unit && value * known.bytes < 0x1p62) {
        return static_cast<int64_t>(std::llround(value * known.bytes));
      }
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::string_view(text.data(), text.size()),
                   "\" is not a size; write for example 512MiB or 1.5GB"));
}

std::string FormatBytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB",
                                                 "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.1f %s", value, kNames[unit]);
}

}  // namespace portolan

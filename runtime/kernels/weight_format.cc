#include "runtime/kernels/weight_format.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kInt8,
                                     WeightFormat::kInt4};

}  // namespace

std::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "unknown";
}

absl::StatusOr<WeightFormat> ParseWeightFormat(std::string_view text) {
  for (const WeightFormat format : kFormats) {
    if (text == WeightFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", std::string(text),
                   "\" is no weight format; known are bf16, int8 and int4"));
}

}  // namespace portolan

#include "runtime/model/checkpoint/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/strict_json.h"

namespace portolan {
namespace {

using nlohmann::json;

struct DtypeBits {
  std::string_view name;
  uint64_t bits;
};

// The format's own list.
constexpr DtypeBits kDtypes[] = {
    {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6},
    {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},
    {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},
    {"I64", 64},    {"U64", 64}};

constexpr size_t kMaxRank = 16;

// Makes errors of one tensor: "FILE: tensor NAME: why".
struct Fault {
  const std::string& file;
  const std::string& tensor;

  absl::Status operator()(const std::string& why) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": tensor ", tensor, ": ", why));
  }
};

absl::StatusOr<std::vector<int64_t>> ReadShape(const Fault& fault,
                                               const json& entry) {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMaxRank) {
    return fault(absl::StrCat("no shape of at most ", kMaxRank, " sizes"));
  }
  std::vector<int64_t> sizes;
  for (const json& size : *shape) {
    if (!size.is_number_unsigned() ||
        size.get<uint64_t>() >
            static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return fault(absl::StrCat("size ", size.dump(), " in shape"));
    }
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

// The bytes that shape and dtype ask for.
absl::StatusOr<uint64_t> WantedBytes(const Fault& fault,
                                     const TensorInfo& tensor) {
  const auto* dtype =
      std::ranges::find(kDtypes, tensor.dtype, &DtypeBits::name);
  if (dtype == std::end(kDtypes)) {
    return fault(absl::StrCat("unknown dtype \"", tensor.dtype, "\""));
  }
  uint64_t bits = dtype->bits;
  for (int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits)) {
      return fault(absl::StrCat("shape ", ShapeString(tensor.shape),
                                " is larger than any file"));
    }
  }
  if (bits % 8 != 0) return fault("does not end at a whole byte");
  return bits / 8;
}

absl::Status ReadOffsets(const Fault& fault, const json& entry,
                         uint64_t data_begin, uint64_t file_bytes,
                         TensorInfo& tensor) {
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return fault("no data_offsets of two numbers >= 0");
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  const std::string range = absl::StrCat("data_offsets ", begin, " to ", end);
  if (begin > end) return fault(absl::StrCat(range, " run backwards"));
  if (end > file_bytes - data_begin) {
    return absl::DataLossError(
        absl::StrCat(fault(range).message(), " end behind the file, which has ",
                     file_bytes - data_begin, " bytes of data: truncated?"));
  }
  tensor.offset = data_begin + begin;
  tensor.bytes = end - begin;
  PORTOLAN_ASSIGN_OR_RETURN(const uint64_t wanted, WantedBytes(fault, tensor));
  if (wanted == tensor.bytes) return absl::OkStatus();
  return fault(absl::StrCat(range, " hold ", tensor.bytes, " bytes, but ",
                            tensor.dtype, " ", ShapeString(tensor.shape),
                            " takes ", wanted));
}

absl::StatusOr<TensorInfo> ReadTensor(const std::string& file,
                                      const std::string& name,
                                      const json& entry, uint64_t data_begin,
                                      uint64_t file_bytes) {
  const Fault fault{file, name};
  TensorInfo tensor;
  tensor.name = name;
  if (!entry.is_object()) return fault("not a JSON object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return fault("no dtype");
  tensor.dtype = dtype->get<std::string>();
  PORTOLAN_ASSIGN_OR_RETURN(tensor.shape, ReadShape(fault, entry));
  PORTOLAN_RETURN_IF_ERROR(
      ReadOffsets(fault, entry, data_begin, file_bytes, tensor));
  return tensor;
}

// `tensors` are sorted by offset.
absl::Status CheckCoverage(const std::string& file,
                           const std::vector<TensorInfo>& tensors,
                           uint64_t data_begin, uint64_t file_bytes) {
  uint64_t next = data_begin;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != next) {
      return Fault{file, tensor.name}(absl::StrCat(
          tensor.offset < next ? "overlaps the tensor before it" : "a gap",
          " at offset ", std::min(tensor.offset, next)));
    }
    next += tensor.bytes;
  }
  if (next == file_bytes) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(file, ": tensors end at offset ",
                                          next, ", the file at ", file_bytes));
}

}  // namespace

std::optional<TensorDtype> LoadableDtype(std::string_view dtype) {
  for (TensorDtype known : {TensorDtype::kBf16, TensorDtype::kF16,
                            TensorDtype::kF32, TensorDtype::kF8E4M3}) {
    if (TensorDtypeName(known) == dtype) return known;
  }
  return std::nullopt;
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    const std::string& file, std::string_view text, uint64_t file_bytes) {
  const uint64_t data_begin = kSafetensorsPrefixBytes + text.size();
  if (data_begin > file_bytes) {
    return absl::DataLossError(absl::StrCat(file, ": ends at offset ",
                                            file_bytes, " inside its header"));
  }
  PORTOLAN_ASSIGN_OR_RETURN(const json header, ParseJsonObject(file, text));
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    PORTOLAN_ASSIGN_OR_RETURN(
        TensorInfo tensor,
        ReadTensor(file, name, entry, data_begin, file_bytes));
    tensors.push_back(std::move(tensor));
  }
  std::ranges::sort(tensors, {}, [](const TensorInfo& tensor) {
    return std::tie(tensor.offset, tensor.bytes, tensor.name);
  });
  PORTOLAN_RETURN_IF_ERROR(
      CheckCoverage(file, tensors, data_begin, file_bytes));
  return tensors;
}

}  // namespace portolan

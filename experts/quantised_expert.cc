#include "experts/quantised_expert.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experts/expert_slot.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/packed_matrix.h"

namespace portolan {
namespace {

absl::Status DoesNotFit(WeightFormat format, std::string_view matrix) {
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(matrix), ": a weight is not finite or too large for ",
      std::string(WeightFormatName(format))));
}

using Matrix = std::pair<const char*, QuantisationError ExpertQuantisation::*>;
constexpr Matrix kMatrices[] = {{"gate", &ExpertQuantisation::gate},
                                {"up", &ExpertQuantisation::up},
                                {"down", &ExpertQuantisation::down}};

}  // namespace

absl::Status QuantiseExpert(const ExpertShape& shape, WeightFormat format,
                            const std::byte* from, std::byte* to,
                            ExpertQuantisation& error) {
  const auto* tiles = reinterpret_cast<const Bf16*>(from);
  const int64_t strip = NumInputBlocks(shape.hidden);
  const int64_t blocks = NumOutputBlocks(ExpertGateUpOutputs(shape));
  std::fill_n(to, ExpertSlotBytes(shape, format), std::byte{0});
  for (int64_t block = 0; block < blocks; ++block) {
    const Matrix& matrix = kMatrices[block % 2];  // interleaved
    if (!QuantiseTiles(format, tiles + block * strip * kTileElements, strip,
                       to + block * strip * TileBytes(format),
                       error.*matrix.second)) {
      return DoesNotFit(format, matrix.first);
    }
  }
  const int64_t down =
      NumOutputBlocks(shape.hidden) * NumInputBlocks(shape.intermediate);
  if (!QuantiseTiles(
          format, reinterpret_cast<const Bf16*>(from + ExpertDownOffset(shape)),
          down, to + ExpertDownOffset(shape, format), error.down)) {
    return DoesNotFit(format, "down");
  }
  return absl::OkStatus();
}

QuantisingSource::QuantisingSource(const ExpertShape& shape,
                                   WeightFormat format, ExpertSource& source)
    : shape_(shape), format_(format), source_(source) {
  auto slot =
      AlignedBuffer::Allocate(static_cast<size_t>(ExpertSlotBytes(shape)));
  PORTOLAN_CHECK(slot.ok());
  slot_ = *std::move(slot);
}

absl::Status QuantisingSource::Read(ExpertId id, std::span<std::byte> slot) {
  PORTOLAN_CHECK(static_cast<int64_t>(slot.size()) ==
                 ExpertSlotBytes(shape_, format_));
  PORTOLAN_RETURN_IF_ERROR(source_.Read(id, slot_.bytes()));
  ExpertQuantisation error{.id = id, .gate = {}, .up = {}, .down = {}};
  const absl::Status status =
      QuantiseExpert(shape_, format_, slot_.data(), slot.data(), error);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("expert ", ToString(id),
                                                    ": ", status.message()));
  }
  const double weight_squares = error.gate.weight_squares +
                                error.up.weight_squares +
                                error.down.weight_squares;
  if (weight_squares > 0) errors_.push_back(error);
  return absl::OkStatus();
}

std::string FormatQuantisation(std::span<const ExpertQuantisation> errors) {
  struct Line {
    QuantisationError all;
    double worst = -1;
    int32_t worst_expert = 0;
  };
  std::map<std::pair<int32_t, size_t>, Line> lines;
  for (const ExpertQuantisation& expert : errors) {
    for (size_t m = 0; m < std::size(kMatrices); ++m) {
      const QuantisationError& error = expert.*kMatrices[m].second;
      Line& line = lines[{expert.id.layer, m}];
      line.all.Add(error);
      if (error.RmsRelative() <= line.worst) continue;
      line.worst = error.RmsRelative();
      line.worst_expert = expert.id.expert;
    }
  }
  std::string table =
      "# layer matrix   max error   RMS error   worst expert's RMS\n";
  for (const auto& [key, line] : lines) {
    absl::StrAppendFormat(&table, "  %5d %-6s  %9.5f   %9.5f   %9.5f (%d)\n",
                          key.first, kMatrices[key.second].first,
                          line.all.MaxRelative(), line.all.RmsRelative(),
                          line.worst, line.worst_expert);
  }
  return table;
}

std::string QuantisationJson(WeightFormat format,
                             std::span<const ExpertQuantisation> errors) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  QuantisationError all;
  for (const ExpertQuantisation& expert : errors) {
    for (const Matrix& matrix : kMatrices) {
      const QuantisationError& error = expert.*matrix.second;
      all.Add(error);
      tensors.push_back({{"layer", expert.id.layer},
                         {"expert", expert.id.expert},
                         {"matrix", matrix.first},
                         {"max_relative_error", error.MaxRelative()},
                         {"rms_relative_error", error.RmsRelative()}});
    }
  }
  return nlohmann::ordered_json{
      {"format", std::string(WeightFormatName(format))},
      {"max_relative_error", all.MaxRelative()},
      {"rms_relative_error", all.RmsRelative()},
      {"tensors", std::move(tensors)}}
      .dump(2);
}

}  // namespace portolan

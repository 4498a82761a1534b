#include "experts/history.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experts/byte_codec.h"
#include "experts/hash64.h"
#include "experts/predictor_adaptive.h"
#include "experts/replacing_file.h"
#include "runtime/base/memory_available.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

// Version 2 says how maps are kept; in version 1 all are exact.
constexpr std::string_view kMagic = "PTLHIST2";
constexpr std::string_view kOldMagic = "PTLHIST1";
constexpr int64_t kTokenTableBytes = 64 << 20;

ExpertMapStore::Shape StoreShape(const HistoryShape& shape, int32_t capacity) {
  return {.capacity = capacity,
          .embedding_dim = shape.hidden,
          .num_layers = shape.num_layers,
          .num_experts = shape.num_experts,
          .format = shape.format,
          .top_m = std::min(shape.num_experts, 4 * shape.top_k),
          .replacement = shape.replacement,
          .distance = shape.distance};
}

TokenTable::Shape TokenTableShape(const HistoryShape& shape) {
  return {.num_layers = shape.num_layers,
          .num_experts = shape.num_experts,
          .top_k = shape.top_k,
          .capacity = shape.token_ids};
}

bool AllFinite(std::span<const float> values) {
  return std::ranges::all_of(values,
                             [](float value) { return std::isfinite(value); });
}

}  // namespace

int64_t HistoryBytes(const HistoryShape& shape) {
  return ExpertMapStore::BytesOf(StoreShape(shape, shape.iterations)) +
         ExpertMapStore::BytesOf(StoreShape(shape, shape.sequences)) +
         2 * TokenTable::BytesOf(TokenTableShape(shape)) +
         int64_t{shape.num_layers} * shape.num_experts * int64_t{sizeof(float)};
}

int32_t TokenTableCapacity(int32_t num_layers, int32_t num_experts) {
  const int64_t per_token = static_cast<int64_t>(num_layers) * num_experts;
  return static_cast<int32_t>(
      std::clamp<int64_t>(kTokenTableBytes / per_token, 64, 16384));
}

absl::Status CheckHistoryFits(const HistoryShape& shape) {
  const int64_t wanted = HistoryBytes(shape);
  const int64_t available = AvailableMemory();
  if (wanted <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "a history of ", shape.iterations, " and ", shape.sequences, " maps of ",
      shape.num_layers, " layers of ", shape.num_experts, " experts takes ",
      FormatBytes(static_cast<uint64_t>(wanted)), ", ",
      FormatBytes(static_cast<uint64_t>(std::max<int64_t>(0, available))),
      " are available: lower --history-capacity"));
}

HistoryShape HistoryShapeOf(const TraceHeader& header, int32_t distance) {
  return {
      .num_layers = header.num_layers,
      .num_experts = header.num_experts,
      .top_k = header.top_k,
      .hidden = header.hidden,
      .fingerprint = header.fingerprint,
      .token_ids = TokenTableCapacity(header.num_layers, header.num_experts),
      .distance = distance};
}

absl::Status CheckSameModel(std::string_view trace, const TraceHeader& header,
                            const HistoryShape& shape) {
  struct Field {
    std::string_view name;
    uint64_t found;
    uint64_t wanted;
  };
  const auto number = [](int32_t value) {
    return static_cast<uint64_t>(value);
  };
  const std::array fields = {
      Field{"layers", number(header.num_layers), number(shape.num_layers)},
      Field{"experts of a layer", number(header.num_experts),
            number(shape.num_experts)},
      Field{"experts of a token", number(header.top_k), number(shape.top_k)},
      Field{"hidden size", number(header.hidden), number(shape.hidden)},
      Field{"fingerprint", header.fingerprint, shape.fingerprint}};
  for (const Field& field : fields) {
    if (field.found == field.wanted) continue;
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s was recorded of another model%s: %s %d, wanted is %d; record one "
        "of this model (--trace), or name the model or trace that belongs to "
        "it",
        trace, header.model.empty() ? "" : " (" + header.model + ")",
        field.name, field.found, field.wanted));
  }
  return absl::OkStatus();
}

History::History(const HistoryShape& shape)
    : shape_(shape),
      iterations_(StoreShape(shape, shape.iterations)),
      sequences_(StoreShape(shape, shape.sequences)),
      tokens_(TokenTableShape(shape)),
      followers_(tokens_.shape()),
      popularity_(static_cast<size_t>(shape.num_layers) *
                      static_cast<size_t>(shape.num_experts),
                  static_cast<float>(shape.top_k) /
                      static_cast<float>(shape.num_experts)),
      mixers_(InitialMixers(shape.num_layers)) {}

std::vector<float> History::UseProfile() const {
  if (sequences_.size() == 0) return popularity_;
  const auto experts = static_cast<size_t>(shape_.num_experts);
  std::vector<float> profile(popularity_.size());
  std::vector<float> row(experts);
  for (int32_t record = 0; record < sequences_.size(); ++record) {
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      sequences_.CopyRow(record, layer, row);
      const size_t first = static_cast<size_t>(layer) * experts;
      for (size_t i = 0; i < experts; ++i) profile[first + i] += row[i];
    }
  }
  for (float& share : profile) share /= static_cast<float>(sequences_.size());
  return profile;
}

void History::Learn(const SequenceRecord& record, uint64_t shared_id) {
  sequences_.SetSharedId(
      sequences_.Add(record.context,
                     {record.map, shape_.num_layers, shape_.num_experts}),
      shared_id);
  const size_t layers = static_cast<size_t>(shape_.num_layers);
  const size_t experts = static_cast<size_t>(shape_.num_experts);
  const size_t top_k = static_cast<size_t>(shape_.top_k);
  int32_t last = -1;
  for (size_t i = 0; i < record.tokens.size(); ++i) {
    const std::span<const int32_t> choices =
        std::span(record.experts).subspan(i * layers * top_k, layers * top_k);
    tokens_.Learn(record.tokens[i], choices);
    followers_.Learn(last, choices);
    last = record.tokens[i];
    for (float& share : popularity_) share *= 1 - kPopularityRate;
    for (size_t c = 0; c < choices.size(); ++c) {
      popularity_[c / top_k * experts + static_cast<size_t>(choices[c])] +=
          kPopularityRate;
    }
  }
}

void History::Learn(const IterationRecord& record, uint64_t shared_id) {
  iterations_.SetSharedId(
      iterations_.Add(record.embedding,
                      {record.map, shape_.num_layers, shape_.num_experts}),
      shared_id);
}

std::string History::Serialize() const {
  ByteWriter out;
  out.PutArray(std::span(kMagic));
  out.Put(static_cast<uint8_t>(shape_.format));
  out.Put(shape_.num_layers);
  out.Put(shape_.num_experts);
  out.Put(shape_.top_k);
  out.Put(shape_.hidden);
  out.Put(shape_.fingerprint);
  out.PutArray(std::span(popularity_));
  out.Put(static_cast<uint32_t>(mixers_.size()));
  for (const Mixer& mixer : mixers_) out.PutArray(mixer.weights());
  tokens_.Save(out);
  followers_.Save(out);
  sequences_.Save(out);
  iterations_.Save(out);
  out.Put(Hash64(out.bytes()));
  const auto bytes = out.bytes();
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::Status History::Parse(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  constexpr size_t kSum = sizeof(uint64_t);
  const bool is_old = text.starts_with(kOldMagic);
  if ((!text.starts_with(kMagic) && !is_old) ||
      text.size() < kMagic.size() + kSum) {
    return absl::DataLossError(
        "not a history of this version (PTLHIST2): name another file, or "
        "remove it, it is rebuilt");
  }
  ByteReader sum(bytes.last(kSum));
  if (sum.Get<uint64_t>() != Hash64(bytes.first(bytes.size() - kSum))) {
    return absl::DataLossError(
        "the history is damaged (checksum): remove it, it is rebuilt");
  }
  ByteReader in(bytes.first(bytes.size() - kSum).subspan(kMagic.size()));
  const auto format = is_old ? MapFormat::kExact : in.Get<MapFormat>();
  const bool same_shape = in.Get<int32_t>() == shape_.num_layers &&
                          in.Get<int32_t>() == shape_.num_experts &&
                          in.Get<int32_t>() == shape_.top_k &&
                          in.Get<int32_t>() == shape_.hidden &&
                          in.Get<uint64_t>() == shape_.fingerprint;
  if (!same_shape) {
    return absl::FailedPreconditionError(
        "the history belongs to another model: use one file for "
        "each");
  }
  if (format == MapFormat::kCompact && shape_.format == MapFormat::kExact) {
    return absl::FailedPreconditionError(
        "the history is compact, and exact maps cannot be made of compact "
        "ones: add --history-format compact, or name another file");
  }
  History loaded(shape_);
  if (format > MapFormat::kCompact || !loaded.ParseBody(in, format)) {
    return absl::DataLossError(
        "the history holds what no history can: remove it, it is rebuilt");
  }
  *this = std::move(loaded);
  return absl::OkStatus();
}

bool History::ParseBody(ByteReader& in, MapFormat format) {
  popularity_ = in.GetArray<float>(popularity_.size());
  if (!in.ok() || in.Get<uint32_t>() != mixers_.size()) return false;
  for (Mixer& mixer : mixers_) {
    const auto weights = in.GetArray<float>(mixer.num_inputs());
    if (!in.ok() || !AllFinite(weights)) return false;
    std::ranges::copy(weights, mixer.weights().begin());
  }
  return AllFinite(popularity_) && tokens_.Load(in) && followers_.Load(in) &&
         sequences_.Load(in, format) && iterations_.Load(in, format) &&
         in.remaining() == 0;
}

absl::Status History::Save(const std::string& path) const {
  const std::string bytes = Serialize();
  ReplacingFile file(path);
  absl::Status status = file.Create();
  if (status.ok()) status = file.Write(0, std::as_bytes(std::span(bytes)));
  if (status.ok()) status = file.Commit();
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat("cannot write the history ", path, ": ", status.message()));
}

namespace {

// A device or a pipe may never end, and what has no room need not be read.
absl::Status CheckReadable(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot open the history ", path));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot read the history ", path,
        ": it is no regular file; name one, or one that is not there yet"));
  }
  if (info.st_size > AvailableMemory()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot read the history ", path, ": its ",
                     FormatBytes(static_cast<uint64_t>(info.st_size)),
                     " do not fit into memory; name another file"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status History::Load(const std::string& path) {
  PORTOLAN_RETURN_IF_ERROR(CheckReadable(path));
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot open the history ", path));
  }
  const std::string bytes((std::istreambuf_iterator<char>(in)),
                          std::istreambuf_iterator<char>());
  if (const absl::Status status = Parse(bytes); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(path, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace portolan

#include "experts/history_record.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "experts/byte_codec.h"
#include "runtime/base/check.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

size_t NumCells(const RecordShape& shape) {
  return static_cast<size_t>(shape.num_layers) *
         static_cast<size_t>(shape.num_experts);
}

size_t NumChoices(const RecordShape& shape) {
  return static_cast<size_t>(shape.num_layers) *
         static_cast<size_t>(shape.top_k);
}

std::string TakeBytes(const ByteWriter& out) {
  const auto bytes = out.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

ByteReader ReaderOf(std::string_view bytes) {
  return ByteReader(std::as_bytes(std::span(bytes)));
}

// Unit length, so that no direction overflows half precision.
std::string EncodeKey(std::span<const float> vector) {
  double square = 0;
  for (const float value : vector) square += double{value} * value;
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  ByteWriter out;
  for (const float value : vector) {
    out.Put(ToFp16(static_cast<float>(value * scale)).bits);
  }
  return TakeBytes(out);
}

absl::StatusOr<std::vector<float>> DecodeHalves(std::string_view bytes,
                                                size_t count,
                                                const char* what) {
  if (bytes.size() != count * sizeof(Fp16)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", what, " of an expert map has ", bytes.size(),
                     " bytes, not ", count * sizeof(Fp16)));
  }
  std::vector<float> values;
  values.reserve(count);
  for (const uint16_t bits : ReaderOf(bytes).GetArray<uint16_t>(count)) {
    values.push_back(ToFloat(Fp16{bits}));
    if (!std::isfinite(values.back())) {
      return absl::InvalidArgumentError(
          absl::StrCat("the ", what, " of an expert map is not finite"));
    }
  }
  return values;
}

template <typename T>
std::vector<T> Narrow(std::span<const int32_t> values) {
  std::vector<T> narrow(values.size());
  std::ranges::transform(values, narrow.begin(),
                         [](int32_t value) { return static_cast<T>(value); });
  return narrow;
}

void PutExperts(const RecordShape& shape, std::span<const int32_t> experts,
                ByteWriter& out) {
  if (shape.num_experts <= 256) {
    out.PutArray(std::span<const uint8_t>(Narrow<uint8_t>(experts)));
  } else {
    out.PutArray(std::span<const uint16_t>(Narrow<uint16_t>(experts)));
  }
}

std::vector<int32_t> GetExperts(const RecordShape& shape, size_t count,
                                ByteReader& in) {
  if (shape.num_experts <= 256) {
    const auto narrow = in.GetArray<uint8_t>(count);
    return {narrow.begin(), narrow.end()};
  }
  const auto narrow = in.GetArray<uint16_t>(count);
  return {narrow.begin(), narrow.end()};
}

}  // namespace

size_t MaxRowBytes(const RecordShape& shape) {
  const size_t key = static_cast<size_t>(shape.hidden) * sizeof(Fp16);
  const size_t choice =
      shape.num_experts <= 256 ? sizeof(uint8_t) : sizeof(uint16_t);
  const size_t token = sizeof(int32_t) + NumChoices(shape) * choice;
  const size_t sequence = NumCells(shape) + sizeof(uint32_t) +
                          static_cast<size_t>(kMaxRecordTokens) * token;
  return 2 * key + sequence + NumCells(shape) * sizeof(Fp16);
}

HistoryRow EncodeRecord(const RecordShape& shape,
                        const SequenceRecord& record) {
  PORTOLAN_CHECK(record.map.size() == NumCells(shape));
  PORTOLAN_CHECK(record.tokens.size() <= kMaxRecordTokens);
  PORTOLAN_CHECK(record.experts.size() ==
                 record.tokens.size() * NumChoices(shape));
  ByteWriter out;
  for (const float share : record.map) {
    out.Put(
        static_cast<uint8_t>(std::lround(255 * std::clamp(share, 0.0f, 1.0f))));
  }
  out.Put(static_cast<uint32_t>(record.tokens.size()));
  out.PutArray(std::span<const int32_t>(record.tokens));
  PutExperts(shape, record.experts, out);
  return {.format = HistoryFormat::kSequence,
          .key = EncodeKey(record.context),
          .map = TakeBytes(out)};
}

HistoryRow EncodeRecord(const RecordShape& shape,
                        const IterationRecord& record) {
  PORTOLAN_CHECK(record.map.size() == NumCells(shape));
  ByteWriter out;
  for (const float value : record.map) out.Put(ToFp16(value).bits);
  return {.format = HistoryFormat::kIteration,
          .key = EncodeKey(record.embedding),
          .map = TakeBytes(out)};
}

absl::StatusOr<SequenceRecord> DecodeSequence(const RecordShape& shape,
                                              std::string_view key,
                                              std::string_view map) {
  SequenceRecord record;
  auto context = DecodeHalves(key, static_cast<size_t>(shape.hidden), "key");
  if (!context.ok()) return context.status();
  record.context = *std::move(context);
  ByteReader in = ReaderOf(map);
  for (const uint8_t share : in.GetArray<uint8_t>(NumCells(shape))) {
    record.map.push_back(static_cast<float>(share) / 255);
  }
  const auto num_tokens = in.Get<uint32_t>();
  if (in.ok() && num_tokens <= kMaxRecordTokens) {
    record.tokens = in.GetArray<int32_t>(num_tokens);
    record.experts = GetExperts(shape, num_tokens * NumChoices(shape), in);
  }
  const bool whole =
      in.ok() && in.remaining() == 0 && record.tokens.size() == num_tokens;
  const bool sound =
      whole && std::ranges::all_of(record.experts, [&](int32_t expert) {
        return expert < shape.num_experts;
      });
  if (!sound || std::ranges::any_of(record.tokens,
                                    [](int32_t token) { return token < 0; })) {
    return absl::InvalidArgumentError(
        "a sequence's expert map is damaged or of another model");
  }
  return record;
}

absl::StatusOr<IterationRecord> DecodeIteration(const RecordShape& shape,
                                                std::string_view key,
                                                std::string_view map) {
  auto embedding = DecodeHalves(key, static_cast<size_t>(shape.hidden), "key");
  if (!embedding.ok()) return embedding.status();
  auto values = DecodeHalves(map, NumCells(shape), "map");
  if (!values.ok()) return values.status();
  if (std::ranges::any_of(*values, [](float value) { return value < 0; })) {
    return absl::InvalidArgumentError(
        "an iteration's expert map has a negative probability");
  }
  return IterationRecord{*std::move(embedding), *std::move(values)};
}

}  // namespace portolan

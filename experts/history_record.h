#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

// What one finished sequence taught about the gates.
struct SequenceRecord {
  std::vector<float> context;  // [hidden], see sequence_context.h
  // Share of the sequence's tokens that chose each expert,
  // [num_layers, num_experts].
  std::vector<float> map;
  // The first tokens in order and their choices,
  // [num_tokens, num_layers, top_k].
  std::vector<int32_t> tokens;
  std::vector<int32_t> experts;
};

// What the gates said of one token: its embedding, [hidden], and their
// probabilities, [num_layers, num_experts], rows of sum 1.
struct IterationRecord {
  std::vector<float> embedding;
  std::vector<float> map;
};

// Records as they travel between ranks and coordinator (expert_map.proto): the
// key is a vector of unit length in half precision, by whose cosine the
// coordinator judges redundancy; the map is opaque to it.
enum class HistoryFormat : uint32_t { kSequence = 1, kIteration = 2 };
struct HistoryRow {
  HistoryFormat format = HistoryFormat::kSequence;
  std::string key;
  std::string map;
  uint64_t id = 0;  // given by the coordinator

  friend bool operator==(const HistoryRow&, const HistoryRow&) = default;
};

struct RecordShape {
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t hidden = 0;
};

// Most tokens of a sequence that a record keeps one by one.
constexpr int32_t kMaxRecordTokens = 512;

// Of the longest record of each kind together: key and map.
size_t MaxRowBytes(const RecordShape& shape);

// Values of maps are rounded to 1/255 (sequences) and to half precision
// (iterations).
HistoryRow EncodeRecord(const RecordShape& shape, const SequenceRecord& record);
HistoryRow EncodeRecord(const RecordShape& shape,
                        const IterationRecord& record);

// Errors: kInvalidArgument if the bytes are no record of this shape, whatever
// they are.
absl::StatusOr<SequenceRecord> DecodeSequence(const RecordShape& shape,
                                              std::string_view key,
                                              std::string_view map);
absl::StatusOr<IterationRecord> DecodeIteration(const RecordShape& shape,
                                                std::string_view key,
                                                std::string_view map);

}  // namespace portolan

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/byte_codec.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// How rows of expert maps are kept: f32, or the largest `top_m` values of each
// row in 8 bits with their positions (the rest reads as 0).
enum class MapFormat : uint8_t { kExact, kCompact };

std::string_view MapFormatName(MapFormat format);
// Errors: kInvalidArgument naming the formats there are.
absl::StatusOr<MapFormat> ParseMapFormat(std::string_view name);

// Which record a full store gives up for a new one: the most similar to it (as
// published), or of the most similar few the one whose matches helped least.
enum class MapReplacement : uint8_t { kSimilarity, kUsefulness };

// A bounded memory of past iterations: for each an embedding of its input and
// its expert map, the gate's probabilities at every layer.
//
// Thread-compatible. Allocates at construction only.
// Source: fMoE (arXiv 2502.05370), sections on the store, search and
// deduplication; algorithms.md section 1.
class ExpertMapStore {
 public:
  struct Shape {
    int32_t capacity = 0;
    int32_t embedding_dim = 0;
    int32_t num_layers = 0;
    int32_t num_experts = 0;
    MapFormat format = MapFormat::kExact;
    int32_t top_m = 8;  // kCompact only; <= num_experts
    MapReplacement replacement = MapReplacement::kSimilarity;
    // Weight of the embedding in similarity: d of d / num_layers.
    int32_t distance = 3;

    friend bool operator==(const Shape&, const Shape&) = default;
  };

  struct Match {
    int32_t record = 0;
    float similarity = 0;  // cosine
  };

  explicit ExpertMapStore(const Shape& shape);

  const Shape& shape() const { return shape_; }
  int32_t size() const { return size_; }
  // Bytes that the records take, and those of a store of such a shape.
  int64_t bytes() const;
  static int64_t BytesOf(const Shape& shape);

  // Adds a record. embedding: [embedding_dim]; map: [num_layers, num_experts],
  // values >= 0. A full store replaces the redundant record. Returns its place.
  int32_t Add(std::span<const float> embedding, MatrixView<const float> map);

  // The record of the nearest embedding; nullopt while empty.
  std::optional<Match> MatchEmbedding(std::span<const float> embedding);

  // The `count` nearest, nearest first, into `matches`.
  void NearestEmbeddings(std::span<const float> embedding, size_t count,
                         std::vector<Match>& matches);

  // Row `layer` of a record's map: [num_experts].
  void CopyRow(int32_t record, int32_t layer, std::span<float> row) const;

  // Says how well a matched record foretold: 0 nothing .. 1 all of it. Decides
  // under kUsefulness.
  void Reward(int32_t record, float usefulness);
  // Share of the `top_k` largest values of each row of `map` whose places are
  // among the `top_k` largest of the record's row: what it would have foretold.
  float ForetoldShare(int32_t record, MatrixView<const float> map,
                      int32_t top_k);

  // What other ranks call a record that came from them; Add() gives 0, none.
  void SetSharedId(int32_t record, uint64_t id) {
    shared_ids_[static_cast<size_t>(record)] = id;
  }
  // Shared ids that were rewarded with at least a half since the last call, one
  // for each time; a bounded number of them.
  std::span<const uint64_t> useful() const { return useful_; }
  void ClearUseful() { useful_.clear(); }

  // Adds dot products of `row` (padded: PaddedRow(num_experts)) with row
  // `layer` of every record to dots ([size()]): a step of a trajectory search.
  void AddRowDots(int32_t layer, std::span<const float> row,
                  std::span<float> dots) const;
  // |rows 0 .. layer| of a record's map.
  float PrefixNorm(int32_t record, int32_t layer) const {
    return prefix_norms_[Cell(record, layer)];
  }

  // Records as they are kept: compact ones stay compact.
  void Save(ByteWriter& out) const;
  // Takes the records of a store of the same dimensions that was saved in
  // `saved` format, the last ones if they are more than the capacity. A compact
  // store takes exact records too, an exact one compact rows with what they
  // lack as 0. False if the bytes hold no such store.
  bool Load(ByteReader& in, MapFormat saved);

 private:
  size_t Cell(int32_t record, int32_t layer) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(shape_.capacity) +
           static_cast<size_t>(record);
  }
  int32_t ChoosePlace(std::span<const float> embedding,
                      MatrixView<const float> map);
  void FillSimilarities(std::span<const float> embedding,
                        MatrixView<const float> map);
  void StoreRow(int32_t record, int32_t layer, std::span<const float> row);
  // Of a record whose embedding and rows are stored.
  void FinishRecord(int32_t record, float usefulness);
  void SaveRow(int32_t record, int32_t layer, ByteWriter& out) const;
  // Reads a row, exact where `top_m` is 0, and stores it if `record` is given.
  // False if there is no such row.
  bool LoadRow(ByteReader& in, int32_t top_m, std::optional<int32_t> record,
               int32_t layer);
  void StoreEmbedding(int32_t record, std::span<const float> embedding);
  void PadQuery(std::span<const float> values);
  // The places of the `top_k` largest values first in largest_.
  void OrderLargest(std::span<const float> row, size_t top_k);

  Shape shape_;
  size_t dim_stride_;
  size_t row_stride_;
  int32_t size_ = 0;
  std::vector<float> embeddings_;     // [capacity, dim_stride], unit length
  std::vector<float> rows_;           // kExact: [layers, capacity, row_stride]
  std::vector<uint8_t> values_;       // kCompact: [layers, capacity, top_m]
  std::vector<uint16_t> positions_;   // likewise
  std::vector<float> scales_;         // [layers, capacity]
  std::vector<float> prefix_norms_;   // [layers, capacity]
  std::vector<float> usefulness_;     // [capacity]
  std::vector<uint64_t> shared_ids_;  // [capacity]
  std::vector<uint64_t> useful_;      // at most kMaxUseful
  // Scratch.
  std::vector<float> query_;
  std::vector<float> similarity_;  // [capacity]
  std::vector<float> dots_;        // [capacity]
  std::vector<float> row_;
  std::vector<int32_t> order_;     // [capacity]
  std::vector<uint16_t> largest_;  // [num_experts]
  std::vector<uint8_t> chosen_;    // [num_experts]
};

}  // namespace portolan

#include "experts/expert_map_store.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "experts/dot_rows.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Of how many most similar records the least useful one goes.
constexpr size_t kRedundant = 8;
// A record that foretold so much was of use.
constexpr float kUseful = 0.5f;
constexpr size_t kMaxUseful = 256;
// Share of the past in a record's usefulness.
constexpr float kUsefulnessMemory = 0.9f;

}  // namespace

std::string_view MapFormatName(MapFormat format) {
  return format == MapFormat::kExact ? "exact" : "compact";
}

absl::StatusOr<MapFormat> ParseMapFormat(std::string_view name) {
  for (const MapFormat format : {MapFormat::kExact, MapFormat::kCompact}) {
    if (name == MapFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      absl::string_view(name.data(), name.size()),
      " is no format of expert maps: there are exact and compact"));
}

ExpertMapStore::ExpertMapStore(const Shape& shape)
    : shape_(shape),
      dim_stride_(PaddedRow(static_cast<size_t>(shape.embedding_dim))),
      row_stride_(PaddedRow(static_cast<size_t>(shape.num_experts))) {
  PORTOLAN_CHECK(shape.capacity > 0 && shape.num_layers > 0);
  const auto capacity = static_cast<size_t>(shape.capacity);
  const size_t cells = capacity * static_cast<size_t>(shape.num_layers);
  embeddings_.resize(capacity * dim_stride_);
  if (shape.format == MapFormat::kExact) {
    rows_.resize(cells * row_stride_);
  } else {
    PORTOLAN_CHECK(shape.top_m > 0 && shape.top_m <= shape.num_experts);
    values_.resize(cells * static_cast<size_t>(shape.top_m));
    positions_.resize(values_.size());
    scales_.resize(cells);
  }
  prefix_norms_.resize(cells);
  usefulness_.resize(capacity);
  shared_ids_.resize(capacity);
  useful_.reserve(kMaxUseful);
  similarity_.resize(capacity);
  dots_.resize(capacity);
  order_.resize(capacity);
  largest_.resize(static_cast<size_t>(shape.num_experts));
  chosen_.resize(static_cast<size_t>(shape.num_experts));
  query_.resize(std::max(dim_stride_, row_stride_));
  row_.resize(row_stride_);
}

int64_t ExpertMapStore::bytes() const { return BytesOf(shape_); }

int64_t ExpertMapStore::BytesOf(const Shape& shape) {
  constexpr int64_t kFloat = sizeof(float);
  const auto padded = [](int32_t values) {
    return static_cast<int64_t>(PaddedRow(static_cast<size_t>(values)));
  };
  const int64_t row =
      shape.format == MapFormat::kExact
          ? padded(shape.num_experts) * kFloat
          : shape.top_m * int64_t{sizeof(uint8_t) + sizeof(uint16_t)} + kFloat;
  // Of a record: embedding, rows with their norms, usefulness, shared id,
  // similarity, dot product and order.
  const int64_t record = padded(shape.embedding_dim) * kFloat +
                         shape.num_layers * (row + kFloat) + 4 * kFloat +
                         int64_t{sizeof(uint64_t)};
  return shape.capacity * record;
}

void ExpertMapStore::PadQuery(std::span<const float> values) {
  std::ranges::fill(query_, 0.0f);
  std::ranges::copy(values, query_.begin());
}

void ExpertMapStore::StoreEmbedding(int32_t record,
                                    std::span<const float> embedding) {
  PORTOLAN_CHECK(std::ssize(embedding) == shape_.embedding_dim);
  const float scale = InverseNorm(SquaredNorm(embedding));
  float* out = embeddings_.data() + static_cast<size_t>(record) * dim_stride_;
  for (const float value : embedding) *out++ = value * scale;
}

void ExpertMapStore::StoreRow(int32_t record, int32_t layer,
                              std::span<const float> row) {
  const size_t cell = Cell(record, layer);
  if (shape_.format == MapFormat::kExact) {
    std::ranges::copy(
        row, rows_.begin() + static_cast<std::ptrdiff_t>(cell * row_stride_));
    return;
  }
  const auto top_m = static_cast<size_t>(shape_.top_m);
  OrderLargest(row, top_m);
  const float scale = row[largest_[0]] / 255.0f;
  scales_[cell] = scale;
  for (size_t i = 0; i < top_m; ++i) {
    positions_[cell * top_m + i] = largest_[i];
    values_[cell * top_m + i] =
        scale > 0 ? static_cast<uint8_t>(std::lround(row[largest_[i]] / scale))
                  : uint8_t{0};
  }
}

void ExpertMapStore::CopyRow(int32_t record, int32_t layer,
                             std::span<float> row) const {
  const size_t cell = Cell(record, layer);
  if (shape_.format == MapFormat::kExact) {
    std::copy_n(rows_.begin() + static_cast<std::ptrdiff_t>(cell * row_stride_),
                row.size(), row.begin());
    return;
  }
  std::ranges::fill(row, 0.0f);
  const auto top_m = static_cast<size_t>(shape_.top_m);
  for (size_t i = cell * top_m; i < (cell + 1) * top_m; ++i) {
    row[positions_[i]] = scales_[cell] * static_cast<float>(values_[i]);
  }
}

void ExpertMapStore::AddRowDots(int32_t layer, std::span<const float> row,
                                std::span<float> dots) const {
  const size_t cell = Cell(0, layer);
  const auto records = static_cast<size_t>(size_);
  PORTOLAN_CHECK(row.size() == row_stride_ && dots.size() >= records);
  if (shape_.format == MapFormat::kExact) {
    DotRows(rows_.data() + cell * row_stride_, row_stride_, records, row,
            dots.data());
    return;
  }
  const auto top_m = static_cast<size_t>(shape_.top_m);
  DotSparseRows(values_.data() + cell * top_m, positions_.data() + cell * top_m,
                scales_.data() + cell, top_m, records, row, dots.data());
}

int32_t ExpertMapStore::Add(std::span<const float> embedding,
                            MatrixView<const float> map) {
  PORTOLAN_CHECK(map.rows() == shape_.num_layers);
  PORTOLAN_CHECK(map.cols() == shape_.num_experts);
  const int32_t place =
      size_ < shape_.capacity ? size_++ : ChoosePlace(embedding, map);
  StoreEmbedding(place, embedding);
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    StoreRow(place, layer, map.Row(layer));
  }
  // Neither proven nor disproven.
  FinishRecord(place, 0.5f);
  return place;
}

void ExpertMapStore::FinishRecord(int32_t record, float usefulness) {
  // Of the rows as they are kept, so that a record's cosine with itself is 1.
  const auto kept =
      std::span(row_).first(static_cast<size_t>(shape_.num_experts));
  float square = 0;
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    CopyRow(record, layer, kept);
    square += SquaredNorm(kept);
    prefix_norms_[Cell(record, layer)] = std::sqrt(square);
  }
  usefulness_[static_cast<size_t>(record)] = usefulness;
  shared_ids_[static_cast<size_t>(record)] = 0;
}

void ExpertMapStore::FillSimilarities(std::span<const float> embedding,
                                      MatrixView<const float> map) {
  const float semantic_weight =
      std::min(1.0f, static_cast<float>(shape_.distance) /
                         static_cast<float>(shape_.num_layers));
  std::ranges::fill(dots_, 0.0f);
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    PadQuery(map.Row(layer));
    AddRowDots(layer, std::span(query_).first(row_stride_), dots_);
  }
  const float map_scale = InverseNorm(SquaredNorm(map.data()));
  std::ranges::fill(similarity_, 0.0f);
  PadQuery(embedding);
  DotRows(embeddings_.data(), dim_stride_, similarity_.size(),
          std::span(query_).first(dim_stride_), similarity_.data());
  const float embedding_scale = InverseNorm(SquaredNorm(embedding));
  for (int32_t record = 0; record < size_; ++record) {
    const auto i = static_cast<size_t>(record);
    const float norm = PrefixNorm(record, shape_.num_layers - 1);
    const float trajectory = norm > 0 ? dots_[i] * map_scale / norm : 0.0f;
    similarity_[i] = semantic_weight * similarity_[i] * embedding_scale +
                     (1 - semantic_weight) * trajectory;
  }
}

int32_t ExpertMapStore::ChoosePlace(std::span<const float> embedding,
                                    MatrixView<const float> map) {
  FillSimilarities(embedding, map);
  if (shape_.replacement == MapReplacement::kSimilarity) {
    return static_cast<int32_t>(std::ranges::max_element(similarity_) -
                                similarity_.begin());
  }
  std::iota(order_.begin(), order_.end(), 0);
  const size_t few = std::min(kRedundant, order_.size());
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(few);
  std::partial_sort(order_.begin(), end, order_.end(),
                    [this](int32_t a, int32_t b) {
                      const float left = similarity_[static_cast<size_t>(a)];
                      const float right = similarity_[static_cast<size_t>(b)];
                      return left > right || (left == right && a < b);
                    });
  return *std::min_element(order_.begin(), end, [this](int32_t a, int32_t b) {
    return usefulness_[static_cast<size_t>(a)] <
           usefulness_[static_cast<size_t>(b)];
  });
}

void ExpertMapStore::Reward(int32_t record, float usefulness) {
  float& mean = usefulness_[static_cast<size_t>(record)];
  mean = kUsefulnessMemory * mean + (1 - kUsefulnessMemory) * usefulness;
  const uint64_t id = shared_ids_[static_cast<size_t>(record)];
  if (id != 0 && usefulness >= kUseful && useful_.size() < kMaxUseful) {
    useful_.push_back(id);
  }
}

void ExpertMapStore::OrderLargest(std::span<const float> row, size_t top_k) {
  std::iota(largest_.begin(), largest_.end(), uint16_t{0});
  std::partial_sort(largest_.begin(),
                    largest_.begin() + static_cast<std::ptrdiff_t>(top_k),
                    largest_.end(), [&](uint16_t a, uint16_t b) {
                      return row[a] > row[b] || (row[a] == row[b] && a < b);
                    });
}

float ExpertMapStore::ForetoldShare(int32_t record, MatrixView<const float> map,
                                    int32_t top_k) {
  const auto num = static_cast<size_t>(top_k);
  const auto kept =
      std::span(row_).first(static_cast<size_t>(shape_.num_experts));
  int32_t foretold = 0;
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    OrderLargest(map.Row(layer), num);
    std::ranges::fill(chosen_, uint8_t{0});
    for (size_t i = 0; i < num; ++i) chosen_[largest_[i]] = 1;
    CopyRow(record, layer, kept);
    OrderLargest(kept, num);
    for (size_t i = 0; i < num; ++i) foretold += chosen_[largest_[i]];
  }
  return static_cast<float>(foretold) /
         static_cast<float>(shape_.num_layers * top_k);
}

std::optional<ExpertMapStore::Match> ExpertMapStore::MatchEmbedding(
    std::span<const float> embedding) {
  if (size_ == 0) return std::nullopt;
  PadQuery(embedding);
  const auto records = static_cast<size_t>(size_);
  std::ranges::fill(similarity_, 0.0f);
  DotRows(embeddings_.data(), dim_stride_, records,
          std::span(query_).first(dim_stride_), similarity_.data());
  const auto best =
      std::max_element(similarity_.begin(), similarity_.begin() + size_);
  return Match{static_cast<int32_t>(best - similarity_.begin()),
               *best * InverseNorm(SquaredNorm(embedding))};
}

void ExpertMapStore::NearestEmbeddings(std::span<const float> embedding,
                                       size_t count,
                                       std::vector<Match>& matches) {
  matches.clear();
  if (!MatchEmbedding(embedding)) return;  // fills similarity_
  const float scale = InverseNorm(SquaredNorm(embedding));
  const auto records = order_.begin() + size_;
  std::iota(order_.begin(), records, 0);
  const size_t wanted = std::min(count, static_cast<size_t>(size_));
  std::partial_sort(order_.begin(),
                    order_.begin() + static_cast<std::ptrdiff_t>(wanted),
                    records, [this](int32_t a, int32_t b) {
                      const float left = similarity_[static_cast<size_t>(a)];
                      const float right = similarity_[static_cast<size_t>(b)];
                      return left > right || (left == right && a < b);
                    });
  for (size_t i = 0; i < wanted; ++i) {
    const int32_t record = order_[i];
    matches.push_back(
        {record, similarity_[static_cast<size_t>(record)] * scale});
  }
}

}  // namespace portolan

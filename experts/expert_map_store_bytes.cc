// How an ExpertMapStore becomes bytes and comes back from them.

#include <algorithm>
#include <cmath>

#include "experts/expert_map_store.h"

namespace portolan {
namespace {

// Far beyond any vector that is searched for, and so small that no square of it
// overflows.
constexpr float kMaxValue = 1e12f;

bool IsSane(std::span<const float> values) {
  return std::ranges::all_of(
      values, [](float value) { return std::abs(value) <= kMaxValue; });
}

// Probabilities, shares or counts: never below zero, as no scale of a compact
// row is.
bool IsSaneRow(std::span<const float> row) {
  return IsSane(row) &&
         std::ranges::all_of(row, [](float value) { return value >= 0; });
}

}  // namespace

void ExpertMapStore::SaveRow(int32_t record, int32_t layer,
                             ByteWriter& out) const {
  const size_t cell = Cell(record, layer);
  if (shape_.format == MapFormat::kExact) {
    out.PutArray(std::span(rows_).subspan(
        cell * row_stride_, static_cast<size_t>(shape_.num_experts)));
    return;
  }
  const auto top_m = static_cast<size_t>(shape_.top_m);
  out.Put(scales_[cell]);
  out.PutArray(std::span(positions_).subspan(cell * top_m, top_m));
  out.PutArray(std::span(values_).subspan(cell * top_m, top_m));
}

bool ExpertMapStore::LoadRow(ByteReader& in, int32_t top_m,
                             std::optional<int32_t> record, int32_t layer) {
  const auto row =
      std::span(row_).first(static_cast<size_t>(shape_.num_experts));
  if (top_m == 0) {
    const auto exact = in.GetArray<float>(row.size());
    if (!in.ok() || !IsSaneRow(exact)) return false;
    if (record) StoreRow(*record, layer, exact);
    return true;
  }
  const auto count = static_cast<size_t>(top_m);
  const auto scale = in.Get<float>();
  const auto positions = in.GetArray<uint16_t>(count);
  const auto values = in.GetArray<uint8_t>(count);
  const bool sound = in.ok() && scale >= 0 && scale <= kMaxValue &&
                     std::ranges::all_of(positions, [&](uint16_t position) {
                       return position < row.size();
                     });
  if (!sound || !record) return sound;
  if (shape_.format == MapFormat::kCompact && top_m == shape_.top_m) {
    const size_t cell = Cell(*record, layer);
    const auto first = static_cast<std::ptrdiff_t>(cell * count);
    scales_[cell] = scale;
    std::ranges::copy(positions, positions_.begin() + first);
    std::ranges::copy(values, values_.begin() + first);
    return true;
  }
  std::ranges::fill(row, 0.0f);
  for (size_t i = 0; i < count; ++i) {
    row[positions[i]] = scale * static_cast<float>(values[i]);
  }
  StoreRow(*record, layer, row);
  return true;
}

void ExpertMapStore::Save(ByteWriter& out) const {
  out.Put(shape_.embedding_dim);
  out.Put(shape_.num_layers);
  out.Put(shape_.num_experts);
  if (shape_.format == MapFormat::kCompact) out.Put(shape_.top_m);
  out.Put(size_);
  for (int32_t record = 0; record < size_; ++record) {
    out.Put(usefulness_[static_cast<size_t>(record)]);
    out.PutArray(std::span(embeddings_)
                     .subspan(static_cast<size_t>(record) * dim_stride_,
                              static_cast<size_t>(shape_.embedding_dim)));
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      SaveRow(record, layer, out);
    }
  }
}

bool ExpertMapStore::Load(ByteReader& in, MapFormat saved) {
  if (in.Get<int32_t>() != shape_.embedding_dim ||
      in.Get<int32_t>() != shape_.num_layers ||
      in.Get<int32_t>() != shape_.num_experts) {
    return false;
  }
  int32_t top_m = 0;
  if (saved == MapFormat::kCompact) {
    top_m = in.Get<int32_t>();
    if (top_m <= 0 || top_m > shape_.num_experts) return false;
  }
  const auto records = in.Get<int32_t>();
  size_ = 0;
  for (int32_t record = 0; record < records && in.ok(); ++record) {
    std::optional<int32_t> place;
    if (record >= records - shape_.capacity) place = size_;  // the oldest go
    const auto usefulness = in.Get<float>();
    const auto embedding =
        in.GetArray<float>(static_cast<size_t>(shape_.embedding_dim));
    if (!in.ok() || !std::isfinite(usefulness) || !IsSane(embedding)) {
      return false;
    }
    if (place) StoreEmbedding(*place, embedding);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      if (!LoadRow(in, top_m, place, layer)) return false;
    }
    if (place) FinishRecord(size_++, usefulness);
  }
  return in.ok();
}

}  // namespace portolan

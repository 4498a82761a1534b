#include "experts/token_table.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace portolan {

TokenTable::TokenTable(const Shape& shape)
    : shape_(shape),
      tokens_(static_cast<size_t>(shape.capacity), -1),
      visits_(static_cast<size_t>(shape.capacity), 0),
      counts_(static_cast<size_t>(shape.capacity) * stride(), 0) {
  PORTOLAN_CHECK(shape.capacity >= static_cast<int32_t>(kWays));
}

int64_t TokenTable::BytesOf(const Shape& shape) {
  const int64_t counts = int64_t{shape.num_layers} * shape.num_experts;
  return shape.capacity * (counts + int64_t{sizeof(int32_t) + sizeof(uint8_t)});
}

size_t TokenTable::FirstPlace(int32_t token) const {
  // Ids below the capacity never collide: small vocabularies are held whole.
  const size_t places = tokens_.size() - kWays + 1;
  return static_cast<size_t>(static_cast<uint32_t>(token)) % places;
}

std::optional<size_t> TokenTable::Locate(int32_t token) const {
  const size_t first = FirstPlace(token);
  for (size_t place = first; place < first + kWays; ++place) {
    if (tokens_[place] == token) return place;
  }
  return std::nullopt;
}

TokenTable::Entry TokenTable::Find(int32_t token, int32_t layer) const {
  const std::optional<size_t> place = Locate(token);
  if (!place) return {};
  const auto experts = static_cast<size_t>(shape_.num_experts);
  return {
      .visits = visits_[*place],
      .counts = std::span(counts_).subspan(
          *place * stride() + static_cast<size_t>(layer) * experts, experts)};
}

size_t TokenTable::Claim(int32_t token) {
  const auto first =
      visits_.begin() + static_cast<std::ptrdiff_t>(FirstPlace(token));
  const auto rarest = std::min_element(first, first + kWays);
  const auto place = static_cast<size_t>(rarest - visits_.begin());
  tokens_[place] = token;
  visits_[place] = 0;
  std::fill_n(counts_.begin() + static_cast<std::ptrdiff_t>(place * stride()),
              stride(), uint8_t{0});
  return place;
}

void TokenTable::Learn(int32_t token, std::span<const int32_t> experts) {
  if (token < 0) return;
  const std::optional<size_t> known = Locate(token);
  const size_t place = known ? *known : Claim(token);
  uint8_t* const counts = counts_.data() + place * stride();
  if (visits_[place] == 254) {
    visits_[place] = 127;
    for (size_t i = 0; i < stride(); ++i) counts[i] /= 2;
  }
  ++visits_[place];
  const auto top_k = static_cast<size_t>(shape_.top_k);
  for (size_t i = 0; i < experts.size(); ++i) {
    const size_t layer = i / top_k;
    ++counts[layer * static_cast<size_t>(shape_.num_experts) +
             static_cast<size_t>(experts[i])];
  }
}

void TokenTable::Save(ByteWriter& out) const {
  out.Put(shape_.capacity);
  uint32_t used = 0;
  for (const int32_t token : tokens_) used += token >= 0;
  out.Put(used);
  for (size_t place = 0; place < tokens_.size(); ++place) {
    if (tokens_[place] < 0) continue;
    out.Put(static_cast<uint32_t>(place));
    out.Put(tokens_[place]);
    out.Put(visits_[place]);
    out.PutArray(std::span(counts_).subspan(place * stride(), stride()));
  }
}

bool TokenTable::Load(ByteReader& in) {
  if (in.Get<int32_t>() != shape_.capacity) return false;
  const auto used = in.Get<uint32_t>();
  for (uint32_t i = 0; i < used && in.ok(); ++i) {
    const auto place = in.Get<uint32_t>();
    const auto token = in.Get<int32_t>();
    const auto visits = in.Get<uint8_t>();
    const auto counts = in.Take(stride());
    if (!in.ok() || place >= tokens_.size() || token < 0 || visits > 254) {
      return false;
    }
    tokens_[place] = token;
    visits_[place] = visits;
    std::memcpy(counts_.data() + place * stride(), counts.data(), stride());
  }
  return in.ok();
}

}  // namespace portolan

#include "comm/hints.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {

HintBoard::HintBoard(const OwnerTable& owner, int world_size, Rank self,
                     std::vector<int32_t> distances, int step_layers)
    : num_experts_(owner.empty() ? 0 : owner[0].size()),
      self_(static_cast<size_t>(ToIndex(self))),
      distances_(std::move(distances)),
      step_layers_(static_cast<size_t>(step_layers)) {
  const auto world = static_cast<size_t>(world_size);
  for (const std::vector<Rank>& layer : owner) {
    auto& owned = owned_.emplace_back(world);
    for (size_t expert = 0; expert < layer.size(); ++expert) {
      owned[static_cast<size_t>(ToIndex(layer[expert]))].push_back(
          static_cast<int32_t>(expert));
    }
  }
  for (int layer = -1; layer < static_cast<int>(owner.size()); ++layer) {
    for (size_t peer = 0; peer < world; ++peer) {
      max_values_ = std::max(max_values_, Count(layer, peer));
    }
  }
  for (Board* board : {&layer_, &step_}) {
    board->values.resize(world);
    for (auto& values : board->values) values.reserve(max_values_);
  }
  layer_.begin.resize(distances_.size() + 1);
  step_.begin.resize(step_layers_ + 1);
}

size_t HintBoard::num_targets(int layer) const {
  return layer < 0 ? step_layers_ : distances_.size();
}

size_t HintBoard::Target(int layer, size_t index) const {
  if (layer < 0) return index % owned_.size();
  return std::min(owned_.size(), static_cast<size_t>(layer) +
                                     static_cast<size_t>(distances_[index]));
}

size_t HintBoard::Count(int layer, size_t peer) const {
  size_t count = 0;
  for (size_t index = 0; index < num_targets(layer); ++index) {
    const size_t target = Target(layer, index);
    if (target < owned_.size()) count += owned_[target][peer].size();
  }
  return count;
}

size_t HintBoard::Write(std::span<const Fp16> hints, int layer, size_t peer,
                        std::span<Fp16> out) const {
  if (hints.empty()) return 0;
  PORTOLAN_CHECK(hints.size() == num_targets(layer) * num_experts_);
  size_t count = 0;
  for (size_t index = 0; index < num_targets(layer); ++index) {
    const size_t target = Target(layer, index);
    if (target == owned_.size()) continue;
    for (const int32_t expert : owned_[target][peer]) {
      out[count++] = hints[index * num_experts_ + static_cast<size_t>(expert)];
    }
  }
  return count;
}

absl::Status HintBoard::Read(int layer, size_t source,
                             std::span<const Fp16> values) {
  if (!values.empty() && values.size() != Count(layer, self_)) {
    return absl::InternalError(absl::StrCat("sent ", values.size(),
                                            " hints where this rank expects ",
                                            Count(layer, self_), " or none"));
  }
  Board& board = layer < 0 ? step_ : layer_;
  board.values[source].assign(values.begin(), values.end());
  for (size_t index = 0; index < num_targets(layer); ++index) {
    const size_t target = Target(layer, index);
    board.begin[index + 1] =
        board.begin[index] +
        (target < owned_.size() ? owned_[target][self_].size() : 0);
  }
  return absl::OkStatus();
}

std::span<const Fp16> HintBoard::Layer(size_t source, int index) const {
  return layer_.At(source, index);
}

std::span<const Fp16> HintBoard::Step(size_t source, int index) const {
  return step_.At(source, index);
}

std::span<const Fp16> HintBoard::Board::At(size_t source, int index) const {
  const auto i = static_cast<size_t>(index);
  const std::vector<Fp16>& all = values[source];
  if (all.empty()) return {};
  return std::span(all).subspan(begin[i], begin[i + 1] - begin[i]);
}

}  // namespace portolan

#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <utility>

namespace portolan {

// Position of a process in the world, 0 .. world_size - 1.
enum class Rank : int32_t {};

constexpr int ToIndex(Rank rank) { return static_cast<int>(rank); }

// One expert of one layer, both counted from 0. Experts of different layers
// never share weights.
struct ExpertId {
  int32_t layer = 0;
  int32_t expert = 0;

  friend auto operator<=>(const ExpertId&, const ExpertId&) = default;

  template <typename H>
  friend H AbslHashValue(H h, const ExpertId& id) {
    return H::combine(std::move(h), id.layer, id.expert);
  }
};

// "L3/E17", for messages.
std::string ToString(ExpertId id);

}  // namespace portolan

#pragma once

#include <cstdint>

namespace portolan {

// The size of every routed expert of a model: gate and up are
// [intermediate, hidden], down is [hidden, intermediate].
struct ExpertShape {
  int64_t hidden = 0;
  int64_t intermediate = 0;

  friend bool operator==(const ExpertShape&, const ExpertShape&) = default;
};

}  // namespace portolan

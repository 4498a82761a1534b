#include "comm/combine.h"

#include <algorithm>
#include <cstddef>

namespace portolan {
namespace {

// Values per pass: a block of `out` stays in registers or L1 for all terms.
constexpr size_t kBlock = 512;

}  // namespace

void WeightedSum(std::span<const float> weights,
                 std::span<const float* const> rows, std::span<float> out) {
  if (rows.empty()) {
    std::fill(out.begin(), out.end(), 0.0f);
    return;
  }
  for (size_t begin = 0; begin < out.size(); begin += kBlock) {
    const size_t size = std::min(kBlock, out.size() - begin);
    float* __restrict to = out.data() + begin;
    const float* __restrict first = rows[0] + begin;
    for (size_t i = 0; i < size; ++i) to[i] = weights[0] * first[i];
    for (size_t term = 1; term < rows.size(); ++term) {
      const float* __restrict row = rows[term] + begin;
      const float weight = weights[term];
      for (size_t i = 0; i < size; ++i) to[i] += weight * row[i];
    }
  }
}

void Add(const float* row, std::span<float> out) {
  const float* __restrict from = row;
  float* __restrict to = out.data();
  for (size_t i = 0; i < out.size(); ++i) to[i] += from[i];
}

}  // namespace portolan

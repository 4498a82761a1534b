#pragma once

#include <cstdint>
#include <span>

namespace portolan {

// The sums of the combine step. f32, one multiplication and one addition per
// term, no FMA: the same bits on every CPU. `weights` and `rows` have one entry
// per term; every row has out.size() values.

// out = weights[0] * rows[0] + weights[1] * rows[1] + ..., from left to right.
// No term: zeros.
void WeightedSum(std::span<const float> weights,
                 std::span<const float* const> rows, std::span<float> out);

// out += row.
void Add(const float* row, std::span<float> out);

}  // namespace portolan

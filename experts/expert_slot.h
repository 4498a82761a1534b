#pragma once

#include <cstddef>
#include <cstdint>

#include "experts/expert_shape.h"
#include "runtime/base/bf16.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// An expert as kernels read it, the contents of a cache slot: gate and up
// packed (packed_matrix.h) with their blocks of 16 outputs interleaved, gate
// block i before up block i; then down, packed, at ExpertDownOffset().
// A multiple of 4096 bytes; the padding is zero. Quantised tiles
// (quantised_expert.h) take the same places, smaller.
int64_t ExpertSlotBytes(const ExpertShape& shape,
                        WeightFormat format = WeightFormat::kBf16);
int64_t ExpertDownOffset(const ExpertShape& shape,
                         WeightFormat format = WeightFormat::kBf16);

// Outputs of the interleaved gate and up, padding included.
int64_t ExpertGateUpOutputs(const ExpertShape& shape);

// Packs a whole expert. gate, up: row-major [intermediate, hidden]; down:
// row-major [hidden, intermediate]. Writes ExpertSlotBytes(). Thread-safe.
void PackExpert(const ExpertShape& shape, const Bf16* gate, const Bf16* up,
                const Bf16* down, std::byte* slot);

// The same in pieces, for a source that reads a matrix at a time.
void PackExpertGate(const ExpertShape& shape, const Bf16* gate,
                    std::byte* slot);
void PackExpertUp(const ExpertShape& shape, const Bf16* up, std::byte* slot);
void PackExpertDown(const ExpertShape& shape, const Bf16* down,
                    std::byte* slot);

}  // namespace portolan

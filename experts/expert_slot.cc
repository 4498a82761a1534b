#include "experts/expert_slot.h"

#include <algorithm>

#include "runtime/kernels/packed_matrix.h"

namespace portolan {
namespace {

constexpr int64_t kSlotAlignment = 4096;
constexpr int64_t kMatrixAlignment = 64;

// Gate (which = 0) or up (which = 1): every second block of 16 outputs.
void PackHalf(const ExpertShape& shape, const Bf16* src, int64_t which,
              std::byte* slot) {
  const int64_t block_elements = NumInputBlocks(shape.hidden) * kTileElements;
  Bf16* dst = reinterpret_cast<Bf16*>(slot) + which * block_elements;
  for (int64_t i = 0; i < NumOutputBlocks(shape.intermediate); ++i) {
    const int64_t first = i * kTileOutputs;
    PackBlock(src + first * shape.hidden, shape.hidden,
              std::min(kTileOutputs, shape.intermediate - first), shape.hidden,
              dst + 2 * i * block_elements);
  }
}

}  // namespace

int64_t ExpertGateUpOutputs(const ExpertShape& shape) {
  return 2 * kTileOutputs * NumOutputBlocks(shape.intermediate);
}

int64_t ExpertDownOffset(const ExpertShape& shape, WeightFormat format) {
  // Tiles of any format come in multiples of 16 bytes; kernels ask for 64.
  const int64_t bytes =
      PackedBytes(ExpertGateUpOutputs(shape), shape.hidden, format);
  return (bytes + kMatrixAlignment - 1) / kMatrixAlignment * kMatrixAlignment;
}

int64_t ExpertSlotBytes(const ExpertShape& shape, WeightFormat format) {
  const int64_t bytes = ExpertDownOffset(shape, format) +
                        PackedBytes(shape.hidden, shape.intermediate, format);
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

void PackExpert(const ExpertShape& shape, const Bf16* gate, const Bf16* up,
                const Bf16* down, std::byte* slot) {
  PackExpertGate(shape, gate, slot);
  PackExpertUp(shape, up, slot);
  PackExpertDown(shape, down, slot);
}

void PackExpertGate(const ExpertShape& shape, const Bf16* gate,
                    std::byte* slot) {
  PackHalf(shape, gate, 0, slot);
}

void PackExpertUp(const ExpertShape& shape, const Bf16* up, std::byte* slot) {
  PackHalf(shape, up, 1, slot);
}

void PackExpertDown(const ExpertShape& shape, const Bf16* down,
                    std::byte* slot) {
  std::byte* dst = slot + ExpertDownOffset(shape);
  PackMatrix(down, shape.intermediate, shape.hidden, shape.intermediate,
             reinterpret_cast<Bf16*>(dst));
  std::byte* end = dst + PackedBytes(shape.hidden, shape.intermediate);
  std::fill(end, slot + ExpertSlotBytes(shape), std::byte{0});
}

}  // namespace portolan

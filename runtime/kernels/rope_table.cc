#include "runtime/kernels/rope_table.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/kernels/math.h"

namespace portolan {

absl::StatusOr<RopeTable> RopeTable::Create(std::span<const double> frequencies,
                                            int64_t capacity) {
  PORTOLAN_CHECK(!frequencies.empty() && capacity > 0);
  std::vector<float> rounded;
  for (const double frequency : frequencies) {
    rounded.push_back(static_cast<float>(frequency));
  }
  const int64_t bytes =
      Bytes(2 * static_cast<int64_t>(frequencies.size()), capacity);
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer values,
      AlignedBuffer::Allocate(static_cast<size_t>(bytes)));
  return RopeTable(std::move(rounded), std::move(values));
}

int64_t RopeTable::Bytes(int64_t rotary_dim, int64_t capacity) {
  return capacity * rotary_dim * static_cast<int64_t>(sizeof(float));
}

void RopeTable::Reach(int64_t end) {
  PORTOLAN_CHECK(Bytes(rotary_dim(), end) <= bytes());
  for (; num_positions_ < end; ++num_positions_) {
    const auto at = static_cast<float>(num_positions_);
    float* const cos =
        values_.As<float>().data() + num_positions_ * rotary_dim();
    float* const sin = cos + half();
    for (size_t i = 0; i < frequencies_.size(); ++i) {
      const float angle = at * frequencies_[i];
      cos[i] = static_cast<float>(CosD(angle));
      sin[i] = static_cast<float>(SinD(angle));
    }
  }
}

}  // namespace portolan

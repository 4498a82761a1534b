#include "experts/weight_conversion.h"

#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

// By memcpy: a tensor may lie at any offset of its file.
template <typename Stored>
void Round(std::span<const std::byte> from, std::span<Bf16> to,
           float (*widen)(Stored)) {
  for (size_t i = 0; i < to.size(); ++i) {
    Stored value;
    std::memcpy(&value, from.data() + i * sizeof(Stored), sizeof(Stored));
    to[i] = ToBf16(widen(value));
  }
}

}  // namespace

void ConvertToBf16(TensorDtype dtype, std::span<const std::byte> from,
                   std::span<Bf16> to) {
  PORTOLAN_CHECK(from.size() ==
                 to.size() * static_cast<size_t>(BytesOf(dtype)));
  switch (dtype) {
    case TensorDtype::kBf16:
      if (!to.empty() && static_cast<const void*>(to.data()) != from.data()) {
        std::memmove(to.data(), from.data(), from.size());
      }
      return;
    case TensorDtype::kF16:
      return Round<Fp16>(from, to, [](Fp16 value) { return ToFloat(value); });
    case TensorDtype::kF32:
      return Round<float>(from, to, [](float value) { return value; });
  }
}

}  // namespace portolan

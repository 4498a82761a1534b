#include "experts/expert_extents.h"

#include "runtime/base/check.h"

namespace portolan {

int64_t BytesOf(TensorDtype dtype) {
  return dtype == TensorDtype::kF32 ? 4 : 2;
}

std::string_view TensorDtypeName(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kBf16:
      return "BF16";
    case TensorDtype::kF16:
      return "F16";
    case TensorDtype::kF32:
      return "F32";
  }
  PORTOLAN_CHECK(false);
}

}  // namespace portolan

#include "experts/expert_extents.h"

#include "runtime/base/check.h"

namespace portolan {

int64_t BytesOf(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kF8E4M3:
      return 1;
    case TensorDtype::kBf16:
    case TensorDtype::kF16:
      return 2;
    case TensorDtype::kF32:
      return 4;
  }
  PORTOLAN_CHECK(false);
}

std::string_view TensorDtypeName(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kBf16:
      return "BF16";
    case TensorDtype::kF16:
      return "F16";
    case TensorDtype::kF32:
      return "F32";
    case TensorDtype::kF8E4M3:
      return "F8_E4M3";
  }
  PORTOLAN_CHECK(false);
}

}  // namespace portolan

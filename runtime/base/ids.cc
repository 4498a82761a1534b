#include "runtime/base/ids.h"

#include "absl/strings/str_cat.h"

namespace portolan {

std::string ToString(ExpertId id) {
  return absl::StrCat("L", id.layer, "/E", id.expert);
}

}  // namespace portolan

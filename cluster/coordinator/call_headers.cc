#include "cluster/coordinator/call_headers.h"

#include <algorithm>
#include <cstddef>

namespace portolan {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr size_t kTraceparent = 55;

bool IsPrintable(char c) { return c >= 0x20 && c <= 0x7e; }

bool IsLowerHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool IsDash(size_t i) { return i == 2 || i == 35 || i == 52; }

}  // namespace

std::string SoundRequestId(std::string value) {
  const bool sound = value.size() <= kMaxRequestId &&
                     std::all_of(value.begin(), value.end(), IsPrintable);
  return sound ? value : "";
}

std::string SoundTraceparent(std::string value) {
  if (value.size() != kTraceparent) return "";
  for (size_t i = 0; i < value.size(); ++i) {
    if (IsDash(i) ? value[i] != '-' : !IsLowerHex(value[i])) return "";
  }
  return value;
}

}  // namespace portolan

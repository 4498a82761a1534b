// A safetensors header or index from anywhere: an error, or tensors that lie
// inside the file and next to each other.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/model/checkpoint/safetensors.h"

namespace portolan {
namespace {

void CheckTensors(const std::vector<TensorInfo>& tensors, uint64_t begin,
                  uint64_t end) {
  for (const TensorInfo& tensor : tensors) {
    PORTOLAN_CHECK(tensor.offset == begin);
    PORTOLAN_CHECK(tensor.bytes <= end - begin);
    begin += tensor.bytes;
  }
  PORTOLAN_CHECK(begin == end);
}

}  // namespace
}  // namespace portolan

// The first two bytes are the length of the data section.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  if (size < 2) return 0;
  const uint64_t data_bytes = data[0] | uint64_t{data[1]} << 8;
  const std::string_view text(reinterpret_cast<const char*>(data + 2),
                              size - 2);
  const uint64_t data_begin = kSafetensorsPrefixBytes + text.size();
  const auto tensors =
      ParseSafetensorsHeader("f", text, data_begin + data_bytes);
  if (tensors.ok()) {
    CheckTensors(*tensors, data_begin, data_begin + data_bytes);
  }
  const auto index = ParseSafetensorsIndex("i", text);
  if (index.ok()) {
    for (const auto& [tensor, shard] : *index) {
      PORTOLAN_CHECK(shard.find('/') == std::string::npos && shard != "..");
    }
  }
  return 0;
}

// The start of an expert pack from anywhere: an error, or the hashes of exactly
// the records that were expected.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "experts/pack_header.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

PackIdentity IdentityOf(uint8_t choice) {
  const auto format = static_cast<WeightFormat>(choice % 3);
  return {.fingerprint = 0x0123456789abcdefu,
          .numerics = "order 1",
          .num_layers = 1 + choice / 3 % 3,
          .num_experts = 1 + choice / 9 % 200,
          .shape = {.hidden = 64, .intermediate = 32},
          .format = format,
          .slot_bytes = 12288};
}

}  // namespace
}  // namespace portolan

// The first byte chooses what is expected, the second whether the rest is the
// file itself or written over a sound one, from an offset in the next two on.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  if (size < 4) return 0;
  const PackIdentity identity = IdentityOf(data[0]);
  const auto records = static_cast<size_t>(identity.num_layers) *
                       static_cast<size_t>(identity.num_experts);
  const std::vector<uint64_t> hashes(records, 0x1122334455667788u);
  std::vector<std::byte> head = EncodePackHeader(identity, hashes);
  const std::span<const std::byte> rest(
      reinterpret_cast<const std::byte*>(data + 4), size - 4);
  if (data[1] % 2 == 0) {
    head.assign(rest.begin(), rest.end());
  } else {
    const size_t offset = (data[2] | size_t{data[3]} << 8) % head.size();
    const size_t count = std::min(rest.size(), head.size() - offset);
    if (count > 0) std::memcpy(head.data() + offset, rest.data(), count);
  }
  const auto decoded = DecodePackHeader("p", head, identity);
  if (decoded.ok()) PORTOLAN_CHECK(decoded->size() == records);
  return 0;
}

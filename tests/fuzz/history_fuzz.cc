// A history from anywhere: an error after which nothing has changed, or one
// that can be searched, learnt into and saved.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "experts/byte_codec.h"
#include "experts/hash64.h"
#include "experts/history.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr HistoryShape Shape(MapFormat format) {
  return {.num_layers = 2,
          .num_experts = 4,
          .top_k = 1,
          .hidden = 3,
          .fingerprint = 1,
          .iterations = 4,
          .sequences = 4,
          .token_ids = 16,
          .format = format};
}

// With the checksum that its bytes ask for, so that mutations get past it.
std::string WithChecksum(std::string_view body) {
  const uint64_t sum = Hash64(std::as_bytes(std::span(body)));
  ByteWriter out;
  out.Put(sum);
  const auto bytes = out.bytes();
  return std::string(body) +
         std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void Use(History& history) {
  const std::vector<float> embedding(
      static_cast<size_t>(history.shape().hidden), 1.0f);
  const std::vector<float> map(8, 0.25f);
  const std::vector<int32_t> experts = {0, 1};
  std::vector<ExpertMapStore::Match> matches;
  history.sequences().NearestEmbeddings(embedding, 2, matches);
  for (const auto& match : matches) {
    PORTOLAN_CHECK(match.record >= 0 &&
                   match.record < history.sequences().size());
  }
  history.iterations().Add(embedding, {map, 2, 4});
  history.tokens().Learn(3, experts);
  History copy(history.shape());
  PORTOLAN_CHECK(copy.Parse(history.Serialize()).ok());
}

void ParseAs(MapFormat format, std::string_view text) {
  History history(Shape(format));
  history.Parse(text).IgnoreError();
  if (text.size() < 8) return;
  if (history.Parse(WithChecksum(text.substr(0, text.size() - 8))).ok()) {
    Use(history);
  }
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ParseAs(MapFormat::kExact, text);
  ParseAs(MapFormat::kCompact, text);
  return 0;
}

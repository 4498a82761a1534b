// A trace from anywhere: an error, or steps that fit the header, which can be
// replayed and merged.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "experts/byte_codec.h"
#include "experts/hash64.h"
#include "experts/replay.h"
#include "experts/trace.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Gives every block the checksum of what it holds, so that mutations reach what
// lies behind the check.
std::vector<std::byte> WithChecksums(std::span<const std::byte> file) {
  constexpr size_t kMagic = 8;
  ByteWriter out;
  ByteReader in(file);
  out.PutArray(in.Take(std::min(kMagic, in.remaining())));
  while (in.remaining() >= 16) {
    const auto kind = in.Get<uint32_t>();
    const auto bytes = in.Get<uint32_t>();
    in.Get<uint64_t>();
    const auto payload = in.Take(std::min<size_t>(bytes, in.remaining()));
    out.Put(kind);
    out.Put(bytes);
    out.Put(Hash64(payload, kind));
    out.PutArray(payload);
  }
  const auto bytes = out.bytes();
  return {bytes.begin(), bytes.end()};
}

void CheckTrace(const Trace& trace) {
  const TraceHeader& header = trace.header;
  for (const TraceStep& step : trace.steps) {
    PORTOLAN_CHECK(std::ssize(step.layers) == header.num_layers);
    for (const TraceLayer& layer : step.layers) {
      PORTOLAN_CHECK(std::ssize(layer.experts) ==
                     step.num_tokens() * header.top_k);
      PORTOLAN_CHECK(std::ssize(layer.probabilities) ==
                     step.num_tokens() * header.num_experts);
      for (const uint16_t expert : layer.experts) {
        PORTOLAN_CHECK(expert < header.num_experts);
      }
    }
  }
}

// Small ones are run as well.
void TryReplay(const Trace& trace) {
  const TraceHeader& header = trace.header;
  if (int64_t{header.num_layers} * header.num_experts > 256 ||
      header.hidden > 64 || trace.steps.size() > 16 ||
      header.expert_bytes > (1 << 20)) {
    return;
  }
  ReplayOptions options;
  options.link = {.bytes_per_second = 1e9};
  for (const char* policy : {"lru", "adaptive"}) {
    Replay(trace, policy, options, nullptr).IgnoreError();
  }
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  const auto file = std::as_bytes(std::span(data, size));
  ParseTrace(file).IgnoreError();
  const auto trace = ParseTrace(WithChecksums(file));
  if (!trace.ok()) return 0;
  CheckTrace(*trace);
  TryReplay(*trace);
  MergeTraces({*trace, *trace}).IgnoreError();
  return 0;
}

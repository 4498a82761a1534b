// A trace from anywhere: an error, or steps that fit the header, which can be
// replayed and merged.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experts/byte_codec.h"
#include "experts/hash64.h"
#include "experts/replay.h"
#include "experts/trace.h"
#include "experts/trace_join.h"
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

// How many experts the trace loads at most.
int64_t Choices(const Trace& trace) {
  int64_t choices = 0;
  for (const TraceStep& step : trace.steps) {
    choices += step.num_tokens() * trace.header.top_k * trace.header.num_layers;
  }
  return choices;
}

// Short ones are run, whatever their header says.
void TryReplay(const Trace& trace) {
  const TraceHeader& header = trace.header;
  if (trace.steps.size() > 16 || Choices(trace) > 512) return;
  // A small history, or most of the time goes into allocating it; the usual one
  // has an error instead where it is too large.
  HistoryShape shape = HistoryShapeOf(header);
  const bool usual = HistoryBytes(shape) < (1 << 24);
  shape.iterations = 2;
  shape.sequences = 2;
  shape.token_ids = 64;
  if (HistoryBytes(shape) > (1 << 24)) return;
  const History small(shape);
  ReplayOptions options;
  options.link = {.bytes_per_second = 1e9};
  std::vector<std::string_view> policies(PolicyNames().begin(),
                                         PolicyNames().end());
  policies.emplace_back("oracle");
  policies.emplace_back("adaptive+eviction");
  for (const std::string_view policy : policies) {
    for (const char* memory : {"50%", "all"}) {
      options.expert_memory = memory;
      options.num_ranks = std::min(2, header.num_experts);
      Replay(trace, policy, options, &small).IgnoreError();
    }
  }
  options.num_ranks = 1;
  if (usual) Replay(trace, "adaptive", options, nullptr).IgnoreError();
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
  JoinTraces({{"a", *trace}, {"b", *trace}}).IgnoreError();
  return 0;
}

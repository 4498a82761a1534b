#include "experts/chunked_source.h"

#include <algorithm>

namespace portolan {

absl::Status LoadExpert(ChunkedSource& source, ExpertId id,
                        std::span<std::byte> staging,
                        std::span<std::byte> slot) {
  const std::span<std::byte> landing =
      source.staging_bytes() == 0 ? slot : staging;
  const int32_t num_chunks = source.NumChunks(id);
  absl::Status status;
  std::vector<ChunkDone> done;
  int32_t submitted = 0;
  int32_t completed = 0;
  while (completed < submitted || (submitted < num_chunks && status.ok())) {
    while (status.ok() && submitted < num_chunks &&
           submitted - completed < source.queue_depth()) {
      source.Submit({.id = id,
                     .chunk = submitted++,
                     .read_class = ReadClass::kDemand,
                     .landing = landing,
                     .tag = 0,
                     .requested = absl::InfiniteFuture()});
    }
    done.clear();
    source.Wait(absl::InfiniteDuration(), done);
    completed += static_cast<int32_t>(done.size());
    for (const ChunkDone& chunk : done) status.Update(chunk.status);
  }
  if (!status.ok()) return status;
  return source.Finish(id, landing, slot);
}

}  // namespace portolan

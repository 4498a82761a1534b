#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "experts/link_model.h"
#include "runtime/base/ids.h"

namespace portolan {

// A piece of an expert on its way into memory.
struct ChunkRead {
  ExpertId id;
  int32_t chunk = 0;  // 0 .. NumChunks() - 1
  ReadClass read_class = ReadClass::kDemand;
  std::span<std::byte> landing;  // the whole load's, not the chunk's
  uint64_t tag = 0;              // returned with the completion; may repeat
  // When the load was asked for, if before Submit(); a throttled link counts
  // from there.
  absl::Time requested = absl::InfiniteFuture();
};

struct ChunkDone {
  uint64_t tag = 0;
  absl::Status status;
};

// Where the weights of experts come from, in the form that the cache drives:
// an expert is loaded in chunks, so that a demand read overtakes a speculative
// one between two of them. Real ones: files (FileExpertSource), host memory
// (HostSource), and any of them slowed down (ThrottledSource).
//
// Submit(), Wait() and Finish() on one thread only; Wake() on any; the rest is
// constant. Landing buffers and slots are 4 KiB aligned and must live until
// their chunks are done; the destructor waits for chunks under way.
class ChunkedSource {
 public:
  virtual ~ChunkedSource() = default;

  // "checkpoint (io_uring, direct)": for logs.
  virtual std::string name() const = 0;

  // Bytes of the landing buffer that a load needs; 0: its chunks land in the
  // slot itself.
  virtual size_t staging_bytes() const = 0;

  virtual int32_t NumChunks(ExpertId id) const = 0;

  // Bytes of the expert as the source stores it, without alignment.
  virtual int64_t LogicalBytes(ExpertId id) const = 0;

  // Bytes that came from files so far, alignment and bytes between tensors
  // included. On any thread.
  virtual int64_t bytes_read() const { return 0; }

  // Experts read in the order of this number are read in file order.
  virtual uint64_t FileOrder(ExpertId id) const = 0;

  // How many chunks may be under way, and how many speculative ones: few, for
  // a demand read waits behind them.
  virtual int queue_depth() const = 0;
  virtual int speculative_depth() const { return 1; }

  // The link's figures where they are known beforehand, else they are measured.
  virtual std::optional<LinkSpec> link() const { return std::nullopt; }

  // Starts a chunk. Never blocks; a failure is a completion.
  virtual void Submit(const ChunkRead& read) = 0;

  // Blocks until a chunk is done, Wake() was called or `timeout` has passed
  // (with nothing under way, too), then appends what is done to `done`.
  // Errors of a chunk: kDataLoss (truncated, final), kUnavailable (may be tried
  // again), naming file, offset and expert.
  virtual void Wait(absl::Duration timeout, std::vector<ChunkDone>& done) = 0;

  // Ends the present or else the next Wait().
  virtual void Wake() = 0;

  // Makes the slot kernel-ready once all chunks of a load have landed: packs,
  // converts, verifies. CPU work. Errors: kDataLoss naming file and expert.
  virtual absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                              std::span<std::byte> slot) = 0;
};

// Loads one expert and blocks until it is in `slot`; for start-up and tools.
// `staging` has staging_bytes() (4 KiB aligned). Nothing else may be under way.
// Errors: as Wait() and Finish().
absl::Status LoadExpert(ChunkedSource& source, ExpertId id,
                        std::span<std::byte> staging,
                        std::span<std::byte> slot);

}  // namespace portolan

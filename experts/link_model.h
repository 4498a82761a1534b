#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace portolan {

// Whether compute waits for a read now, or may want it later.
enum class ReadClass : uint8_t { kDemand, kSpeculative };

// A link by its two figures. A load occupies the link for `latency` and then
// for bytes / bytes_per_second; loads do not overlap.
struct LinkSpec {
  double bytes_per_second = 0;
  absl::Duration latency = absl::ZeroDuration();

  absl::Duration TimeOf(int64_t bytes) const {
    return absl::Seconds(static_cast<double>(bytes) / bytes_per_second);
  }
};

// Reads "1GB/s,50us"; the latency may be left out (0).
// Errors: kInvalidArgument naming `flag` and what to write.
absl::StatusOr<LinkSpec> ParseLinkSpec(std::string_view text,
                                       std::string_view flag = "--expert-link");

std::string ToString(const LinkSpec& spec);

// Says when the chunks of loads come over one link that carries one chunk at a
// time. A chunk on the link is never interrupted; after it the oldest waiting
// demand chunk goes, and a speculative one only if no demand chunk waits.
//
// Policy in the sense of the house: time is an argument, equal calls give equal
// answers. Times never go back. Thread-compatible.
class LinkModel {
 public:
  explicit LinkModel(const LinkSpec& spec) : spec_(spec) {}

  // Queues a chunk at `now`. The first chunk of a load pays the latency.
  void Submit(uint64_t tag, int64_t bytes, bool first_of_load,
              ReadClass read_class, absl::Time now);

  // Makes the waiting speculative chunks of a tag demand chunks, ahead of those
  // that wait.
  void Promote(uint64_t tag);

  // The tag of the next chunk that has come over by `now`, in order; nullopt if
  // there is none (yet).
  std::optional<uint64_t> PopArrived(absl::Time now);

  // When PopArrived() will have the next chunk if nothing else is submitted;
  // InfiniteFuture if nothing is under way. Call after PopArrived() is empty.
  absl::Time NextArrival() const;

 private:
  struct Chunk {
    uint64_t tag = 0;
    absl::Duration duration = absl::ZeroDuration();
    absl::Time submitted = absl::InfinitePast();
    absl::Time arrival = absl::InfiniteFuture();  // once on the link
  };

  // Puts the next waiting chunk on the free link if it could start by `now`.
  void StartNext(absl::Time now);

  LinkSpec spec_;
  std::deque<Chunk> demand_;
  std::deque<Chunk> speculative_;
  std::optional<Chunk> on_link_;
  absl::Time free_at_ = absl::InfinitePast();
};

}  // namespace portolan

#include "comm/gather.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/base/status_macros.h"

namespace portolan {

absl::StatusOr<MessageMemory> MessageMemory::Allocate(size_t bytes) {
  PORTOLAN_ASSIGN_OR_RETURN(
      AlignedBuffer buffer,
      AlignedBuffer::Allocate(std::max<size_t>(bytes, 1)));
  return MessageMemory(std::move(buffer));
}

absl::Status MessageMemory::AbandonUnless(absl::Status outcome) {
  if (!outcome.ok()) KeepUntilExit(std::move(buffer_));
  return outcome;
}

absl::StatusOr<MessageMemory> AllGather(Transport& transport,
                                        std::span<const std::byte> mine,
                                        const WaitContext& context) {
  const auto world = static_cast<size_t>(transport.world_size());
  const size_t size = mine.size();
  // Those of all ranks, then the copy that is sent.
  PORTOLAN_ASSIGN_OR_RETURN(MessageMemory all,
                            MessageMemory::Allocate((world + 1) * size));
  const std::span<std::byte> copy = all.bytes().subspan(world * size, size);
  std::copy(mine.begin(), mine.end(), copy.begin());
  const std::vector<std::span<const std::byte>> send(world, copy);
  std::vector<std::span<std::byte>> recv;
  for (size_t rank = 0; rank < world; ++rank) {
    recv.push_back(all.bytes().subspan(rank * size, size));
  }
  PORTOLAN_RETURN_IF_ERROR(
      all.AbandonUnless(transport.AllToAllV(send, recv, context)));
  return all;
}

void LeaveTogether(Transport& transport, const WaitContext& context) {
  const std::byte here{};
  (void)AllGather(transport, {&here, 1}, context);
}

}  // namespace portolan

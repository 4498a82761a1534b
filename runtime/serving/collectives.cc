#include "runtime/serving/collectives.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
#include "comm/agreement.h"
#include "comm/gather.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

using ConstBytes = std::span<const std::byte>;
using Bytes = std::span<std::byte>;

// A status as it travels; a longer text is cut.
struct StatusRecord {
  int32_t code = 0;
  uint32_t text_bytes = 0;
  std::array<char, 1016> text = {};
};

StatusRecord ToRecord(const absl::Status& status) {
  StatusRecord record;
  record.code = static_cast<int32_t>(status.code());
  const size_t bytes = std::min(status.message().size(), record.text.size());
  record.text_bytes = static_cast<uint32_t>(bytes);
  std::copy_n(status.message().data(), bytes, record.text.data());
  return record;
}

absl::Status FromRecord(const StatusRecord& record, Rank rank,
                        const Transport& transport) {
  const size_t bytes = std::min<size_t>(record.text_bytes, record.text.size());
  const std::string host(transport.host(rank));
  return absl::Status(static_cast<absl::StatusCode>(record.code),
                      absl::StrCat("rank ", ToIndex(rank), " on ", host, ": ",
                                   std::string(record.text.data(), bytes)));
}

// The size of every rank's text.
absl::StatusOr<std::vector<size_t>> AllSizes(Transport& transport, size_t mine,
                                             const WaitContext& context) {
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span(&mine, 1)), context));
  const auto sizes =
      memory.As<size_t>().first(static_cast<size_t>(transport.world_size()));
  return std::vector<size_t>(sizes.begin(), sizes.end());
}

ConstBytes CopyOf(std::string_view text, Bytes memory) {
  const ConstBytes bytes = std::as_bytes(std::span(text));
  std::copy(bytes.begin(), bytes.end(), memory.begin());
  return memory.first(text.size());
}

std::string TextIn(ConstBytes bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

absl::StatusOr<std::vector<std::string>> GatherToRoot(Transport& transport,
                                                      std::string_view text,
                                                      absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  const bool is_root = transport.rank() == Rank{0};
  const WaitContext context{.phase = "gather", .timeout = timeout};
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<size_t> sizes,
                            AllSizes(transport, text.size(), context));

  // This rank's text, then on rank 0 those of all ranks.
  const size_t arriving =
      is_root ? std::accumulate(sizes.begin(), sizes.end(), size_t{0}) : 0;
  PORTOLAN_ASSIGN_OR_RETURN(MessageMemory memory,
                            MessageMemory::Allocate(text.size() + arriving));
  std::vector<ConstBytes> send(world);
  std::vector<Bytes> receive(world);
  send[0] = CopyOf(text, memory.bytes());
  size_t begin = text.size();
  for (size_t rank = 0; is_root && rank < world; ++rank) {
    receive[rank] = memory.bytes().subspan(begin, sizes[rank]);
    begin += sizes[rank];
  }
  PORTOLAN_RETURN_IF_ERROR(
      memory.AbandonUnless(transport.AllToAllV(send, receive, context)));
  std::vector<std::string> texts;
  for (size_t rank = 0; is_root && rank < world; ++rank) {
    texts.push_back(TextIn(receive[rank]));
  }
  return texts;
}

absl::StatusOr<std::string> BroadcastFromRoot(Transport& transport,
                                              std::string_view text,
                                              absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  const bool is_root = transport.rank() == Rank{0};
  const WaitContext context{.phase = "broadcast", .timeout = timeout};
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<size_t> sizes,
                            AllSizes(transport, text.size(), context));

  const size_t size = sizes[0];
  PORTOLAN_ASSIGN_OR_RETURN(MessageMemory memory,
                            MessageMemory::Allocate(2 * size));
  std::vector<ConstBytes> send(world);
  std::vector<Bytes> receive(world);
  if (is_root)
    std::fill(send.begin(), send.end(), CopyOf(text, memory.bytes()));
  receive[0] = memory.bytes().subspan(size, size);
  PORTOLAN_RETURN_IF_ERROR(
      memory.AbandonUnless(transport.AllToAllV(send, receive, context)));
  return TextIn(receive[0]);
}

absl::Status AgreeOnStatus(Transport& transport, const absl::Status& mine,
                           absl::Duration timeout) {
  const StatusRecord record = ToRecord(mine);
  const WaitContext context{.phase = "start", .timeout = timeout};
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span(&record, 1)), context));
  const auto world = static_cast<size_t>(transport.world_size());
  const auto records = memory.As<StatusRecord>().first(world);
  for (size_t rank = 0; rank < world; ++rank) {
    if (records[rank].code != 0) {
      LeaveTogether(transport, context);
      return OfAllRanks(FromRecord(
          records[rank], Rank{static_cast<int32_t>(rank)}, transport));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> AnyRank(Transport& transport, bool mine,
                             absl::Duration timeout) {
  const auto flag = static_cast<uint8_t>(mine);
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory memory,
      AllGather(transport, std::as_bytes(std::span(&flag, 1)),
                WaitContext{.phase = "start", .timeout = timeout}));
  const auto world = static_cast<size_t>(transport.world_size());
  return std::ranges::count(memory.As<uint8_t>().first(world), 1) > 0;
}

}  // namespace portolan

#include "runtime/serving/collectives.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "absl/strings/str_cat.h"
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

}  // namespace

absl::StatusOr<std::vector<std::string>> GatherToRoot(Transport& transport,
                                                      std::string_view text,
                                                      absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  const bool is_root = transport.rank() == Rank{0};
  const WaitContext context{.phase = "gather", .timeout = timeout};
  const uint64_t size = text.size();
  std::vector<uint64_t> sizes(world);

  std::vector<ConstBytes> send(world);
  std::vector<Bytes> receive(world);
  send[0] = std::as_bytes(std::span(&size, 1));
  for (size_t rank = 0; is_root && rank < world; ++rank) {
    receive[rank] = std::as_writable_bytes(std::span(&sizes[rank], 1));
  }
  PORTOLAN_RETURN_IF_ERROR(transport.AllToAllV(send, receive, context));

  std::vector<std::string> texts(is_root ? world : 0);
  send[0] = std::as_bytes(std::span(text));
  for (size_t rank = 0; is_root && rank < world; ++rank) {
    texts[rank].resize(sizes[rank]);
    receive[rank] = std::as_writable_bytes(std::span(texts[rank]));
  }
  PORTOLAN_RETURN_IF_ERROR(transport.AllToAllV(send, receive, context));
  return texts;
}

absl::StatusOr<std::string> BroadcastFromRoot(Transport& transport,
                                              std::string_view text,
                                              absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  const bool is_root = transport.rank() == Rank{0};
  const WaitContext context{.phase = "broadcast", .timeout = timeout};
  uint64_t size = text.size();
  const uint64_t own_size = size;
  std::vector<ConstBytes> send(world);
  std::vector<Bytes> receive(world);
  if (is_root) {
    std::fill(send.begin(), send.end(), std::as_bytes(std::span(&own_size, 1)));
  }
  receive[0] = std::as_writable_bytes(std::span(&size, 1));
  PORTOLAN_RETURN_IF_ERROR(transport.AllToAllV(send, receive, context));

  std::string received(size, '\0');
  if (is_root)
    std::fill(send.begin(), send.end(), std::as_bytes(std::span(text)));
  receive[0] = std::as_writable_bytes(std::span(received));
  PORTOLAN_RETURN_IF_ERROR(transport.AllToAllV(send, receive, context));
  return received;
}

absl::Status AgreeOnStatus(Transport& transport, const absl::Status& mine,
                           absl::Duration timeout) {
  const auto world = static_cast<size_t>(transport.world_size());
  const WaitContext context{.phase = "start", .timeout = timeout};
  const StatusRecord record = ToRecord(mine);
  std::vector<StatusRecord> records(world);
  const std::vector<ConstBytes> send(world,
                                     std::as_bytes(std::span(&record, 1)));
  std::vector<Bytes> receive(world);
  for (size_t rank = 0; rank < world; ++rank) {
    receive[rank] = std::as_writable_bytes(std::span(&records[rank], 1));
  }
  PORTOLAN_RETURN_IF_ERROR(transport.AllToAllV(send, receive, context));
  for (size_t rank = 0; rank < world; ++rank) {
    if (records[rank].code != 0) {
      return FromRecord(records[rank], Rank{static_cast<int32_t>(rank)},
                        transport);
    }
  }
  return absl::OkStatus();
}

}  // namespace portolan

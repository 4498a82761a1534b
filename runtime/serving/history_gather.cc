#include "runtime/serving/history_gather.h"

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experts/byte_codec.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

std::string TakeRows(HistoryMailbox& mailbox) {
  ByteWriter out;
  while (true) {
    const HistoryMailbox::Outgoing taken = mailbox.TakeOutgoing(
        absl::ZeroDuration(), std::numeric_limits<size_t>::max());
    if (taken.rows.empty()) break;
    for (const HistoryRow& row : taken.rows) {
      out.Put(static_cast<uint32_t>(row.format));
      out.PutString(row.key);
      out.PutString(row.map);
    }
  }
  const std::span<const std::byte> bytes = out.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// False if the bytes are no rows; whole rows before that are delivered.
bool DeliverRows(std::string_view bytes, HistoryMailbox& mailbox) {
  ByteReader in(std::as_bytes(std::span(bytes)));
  while (in.ok() && in.remaining() > 0) {
    HistoryRow row;
    row.format = static_cast<HistoryFormat>(in.Get<uint32_t>());
    row.key = in.GetString();
    row.map = in.GetString();
    if (in.ok()) mailbox.Deliver(std::move(row));
  }
  return in.ok();
}

}  // namespace

absl::Status GatherHistory(Transport& transport, HistoryMailbox& mailbox,
                           absl::Duration timeout) {
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::vector<std::string> rows,
      GatherToRoot(transport, TakeRows(mailbox), timeout));
  for (size_t rank = 1; rank < rows.size(); ++rank) {
    if (DeliverRows(rows[rank], mailbox)) continue;
    return absl::DataLossError(absl::StrCat(
        "what rank ", rank, " learnt for --history does not read back"));
  }
  return absl::OkStatus();
}

}  // namespace portolan

#include "comm/message.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/peer_errors.h"

namespace portolan {

size_t EncodeAbort(const MessageHeader& where, ExchangePhase phase,
                   const absl::Status& status, std::span<std::byte> out) {
  MessageHeader header = where;
  header.kind = MessageKind::kAbort;
  header.rows = static_cast<int32_t>(phase);
  header.status_code = static_cast<int32_t>(status.code());
  header.text_bytes =
      static_cast<uint32_t>(std::min(status.message().size(), kMaxAbortText));
  std::memcpy(out.data(), &header, sizeof(header));
  std::memcpy(out.data() + sizeof(header), status.message().data(),
              header.text_bytes);
  return sizeof(header) + header.text_bytes;
}

std::optional<absl::Status> DecodeAbort(std::span<const std::byte> message,
                                        absl::string_view sender) {
  MessageHeader header;
  if (message.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, message.data(), sizeof(header));
  if (header.magic != kMessageMagic || header.kind != MessageKind::kAbort ||
      header.text_bytes != message.size() - sizeof(header)) {
    return std::nullopt;
  }
  const absl::string_view text(
      reinterpret_cast<const char*>(message.data()) + sizeof(header),
      header.text_bytes);
  const WaitContext where{
      .phase = ToString(static_cast<ExchangePhase>(header.rows)),
      .step = header.step,
      .layer = header.layer};
  return absl::Status(
      static_cast<absl::StatusCode>(header.status_code),
      absl::StrCat(sender, " failed", Describe(where), ": ", text));
}

absl::Status CheckHeader(const MessageHeader& got, const MessageHeader& want,
                         absl::string_view sender) {
  const auto differs = [&](absl::string_view field, auto theirs, auto ours) {
    return absl::InternalError(absl::StrCat(
        sender, " sent a header with ", field, " ", theirs,
        " where this rank expects ", ours, " (its step ", got.step, ", layer ",
        got.layer, "; here step ", want.step, ", layer ", want.layer, ")"));
  };
  if (got.magic != want.magic) return differs("magic", got.magic, want.magic);
  if (got.protocol != want.protocol) {
    return differs("protocol version", got.protocol, want.protocol);
  }
  if (got.epoch != want.epoch) return differs("epoch", got.epoch, want.epoch);
  if (got.step != want.step) return differs("step", got.step, want.step);
  if (got.layer != want.layer) return differs("layer", got.layer, want.layer);
  if (got.kind != want.kind) {
    return differs("kind", static_cast<int>(got.kind),
                   static_cast<int>(want.kind));
  }
  if (got.round != want.round) return differs("round", got.round, want.round);
  if (got.placement_version != want.placement_version) {
    return differs("placement version", got.placement_version,
                   want.placement_version);
  }
  return absl::OkStatus();
}

}  // namespace portolan

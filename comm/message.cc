#include "comm/message.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/peer_errors.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// Each kind uses some counts; the others are 0, and rounds 1.
absl::Status CheckCounts(const MessageHeader& header) {
  const bool dispatch = header.kind == MessageKind::kDispatch;
  const bool combine = header.kind == MessageKind::kCombine;
  constexpr int32_t kAny = INT32_MAX;
  const auto check = [](absl::string_view field, int64_t value, int64_t least,
                        int64_t most) {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("sent a header with ", field, " ",
                                            value,
                                            ", which this message cannot "
                                            "have"));
  };
  PORTOLAN_RETURN_IF_ERROR(
      check("rows", header.rows, 0, dispatch || combine ? kAny : 0));
  PORTOLAN_RETURN_IF_ERROR(check("selections", header.selections,
                                 dispatch ? header.rows : 0,
                                 dispatch ? kAny : 0));
  PORTOLAN_RETURN_IF_ERROR(check("hints", header.hints, 0, combine ? 0 : kAny));
  PORTOLAN_RETURN_IF_ERROR(
      check("rounds", header.rounds, 1, dispatch ? kAny : 1));
  PORTOLAN_RETURN_IF_ERROR(check("status code", header.status_code, 0, 0));
  return check("text bytes", header.text_bytes, 0, 0);
}

}  // namespace

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

absl::Status CheckHeader(const MessageHeader& got, const MessageHeader& want) {
  const auto differs = [&](absl::string_view field, auto theirs, auto ours) {
    return absl::InternalError(absl::StrCat(
        "sent a header with ", field, " ", theirs, " where this rank expects ",
        ours, " (it says step ", got.step, ", layer ", got.layer, ")"));
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
  return CheckCounts(got);
}

absl::Status CheckStepFields(const StepFields& fields) {
  const auto check = [](absl::string_view field, int64_t value, int64_t most) {
    if (value >= 0 && value <= most) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("sent a step record with ", field,
                                            " ", value, ", of 0 to ", most));
  };
  PORTOLAN_RETURN_IF_ERROR(
      check("planned rows", fields.rows_planned, kMostRowsPlanned));
  PORTOLAN_RETURN_IF_ERROR(
      check("load time in us", fields.load_us, kMostLoadUs));
  PORTOLAN_RETURN_IF_ERROR(check("has_work", fields.has_work, 1));
  PORTOLAN_RETURN_IF_ERROR(check("drain", fields.drain, 1));
  return check("has_output", fields.has_output, 1);
}

}  // namespace portolan

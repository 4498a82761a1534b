#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "comm/exchange_options.h"

namespace portolan {

// The messages of the token exchange. Little-endian; ranks of one job run one
// binary, which Agree() has checked.

inline constexpr uint32_t kMessageMagic = 0x4c545250;  // "PRTL"
inline constexpr uint16_t kProtocolVersion = 2;

enum class MessageKind : uint16_t {
  kStep = 1,      // StepFields, hints for the first layers
  kDispatch = 2,  // hints, selections, and the rows if they are few
  kCombine = 3,   // result rows if they are few
  kAbort = 4,     // status text; may stand in for any other message
};

// Every message starts with one.
struct MessageHeader {
  uint32_t magic = kMessageMagic;
  uint16_t protocol = kProtocolVersion;
  MessageKind kind = MessageKind::kAbort;
  uint64_t epoch = 0;
  int64_t step = -1;
  int32_t layer = -1;
  int32_t round = 0;
  uint64_t placement_version = 0;
  int32_t rows = 0;         // kDispatch, kCombine; kAbort: the phase
  int32_t selections = 0;   // kDispatch, kCombine
  int32_t hints = 0;        // f16 values that follow
  int32_t rounds = 1;       // kDispatch: rounds that the sender needs
  int32_t status_code = 0;  // kAbort
  uint32_t text_bytes = 0;  // kAbort
};
static_assert(sizeof(MessageHeader) == 64);

// What a kStep message adds.
struct StepFields {
  int64_t rows_planned = 0;
  int64_t load_us = 0;  // that loading one expert may take; 0: none is loaded
  uint8_t has_work = 0;
  uint8_t drain = 0;
  uint8_t has_output = 0;
  uint8_t reserved[5] = {};
};
static_assert(sizeof(StepFields) == 24);

// Longer texts are cut, so that an abort fits every receive buffer.
inline constexpr size_t kMaxAbortText = 960;
inline constexpr size_t kMaxAbortBytes = sizeof(MessageHeader) + kMaxAbortText;

// Writes an abort message with `status` into `out` (at least kMaxAbortBytes)
// and returns its size.
size_t EncodeAbort(const MessageHeader& where, ExchangePhase phase,
                   const absl::Status& status, std::span<std::byte> out);

// The status of an abort message, prefixed with `sender`; nullopt if `message`
// is none.
std::optional<absl::Status> DecodeAbort(std::span<const std::byte> message,
                                        absl::string_view sender);

// Compares the fields that must agree (magic, protocol, kind, epoch, step,
// layer, round, placement version) and looks whether the counts are ones that a
// message of that kind can have.
// Errors: kInternal naming the first field that does not fit and its value, to
// follow the name of the sender: "sent a header with ...".
absl::Status CheckHeader(const MessageHeader& got, const MessageHeader& want);

// What can be planned for one step of one rank; more is a damaged message.
inline constexpr int64_t kMostRowsPlanned = int64_t{1} << 24;
inline constexpr int64_t kMostLoadUs = int64_t{3600} * 1'000'000;

// Errors: as CheckHeader().
absl::Status CheckStepFields(const StepFields& fields);

}  // namespace portolan

#pragma once

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/coordinator/access.h"
#include "cluster/coordinator/streams.h"
#include "cluster/coordinator/telemetry.h"

namespace portolan {

// Errors: kInvalidArgument.
template <typename Message>
absl::Status FromBytes(const grpc::ByteBuffer& bytes, Message& message) {
  // The reader takes what it reads from its buffer.
  grpc::ByteBuffer taken = bytes;
  grpc::ProtoBufferReader reader(&taken);
  if (reader.status().ok() && message.ParseFromZeroCopyStream(&reader)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("the message is no " +
                                    message.GetTypeName());
}

// Where a call shows who it is, by metadata, certificate and address. Every
// service asks here first. Thread-safe.
class Gate {
 public:
  static constexpr size_t kRankMessageBytes = 16 << 20;

  // Both outlive the gate. gRPC takes messages of any length, for it would
  // refuse long ones before anybody hears of them: what is longer than
  // `max_message_bytes` is refused by Read(). Ranks may always send
  // kRankMessageBytes, for they have no shorter way to say what they did.
  Gate(const AccessRules& rules, Telemetry& telemetry, int max_message_bytes)
      : rules_(rules),
        telemetry_(telemetry),
        max_message_bytes_(static_cast<size_t>(max_message_bytes)) {}

  // Sends x-request-id back as initial metadata, if a sound one came.
  // Errors: kUnauthenticated, kPermissionDenied.
  absl::StatusOr<Caller> Enter(grpc::ServerContextBase& context,
                               ServiceKind service) const;

  // The message of a call that has entered.
  // Errors: kResourceExhausted (too long), kInvalidArgument (no such message).
  template <typename Message>
  absl::Status Read(const grpc::ServerContextBase& context, ServiceKind service,
                    const grpc::ByteBuffer& bytes, Message& message) const {
    if (absl::Status status = CheckLength(context, service, bytes);
        !status.ok()) {
      return status;
    }
    return FromBytes(bytes, message);
  }
  // The first half of it.
  absl::Status CheckLength(const grpc::ServerContextBase& context,
                           ServiceKind service,
                           const grpc::ByteBuffer& bytes) const;

 private:
  const AccessRules& rules_;
  Telemetry& telemetry_;
  const size_t max_message_bytes_;
};

// A message on its way out.
template <typename Message>
grpc::ByteBuffer ToBytes(const Message& message) {
  grpc::ByteBuffer bytes;
  bool owned = false;
  (void)grpc::SerializationTraits<Message>::Serialize(message, &bytes, &owned);
  return bytes;
}

}  // namespace portolan

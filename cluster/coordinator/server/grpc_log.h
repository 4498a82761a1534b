#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cluster/coordinator/telemetry.h"

namespace portolan {

// A line of gRPC's own log that tells of a refused connection or of trouble.
struct GrpcLine {
  std::string address = {};  // without the port; empty: it does not say
  std::string cause = {};
  std::string message = {};
};

// Policy: what a line says to us; nothing: what others say too, or chatter. The
// wording is that of gRPC 1.51; a line of another one that is an error comes
// out as cause "grpc".
std::optional<GrpcLine> ReadGrpcLine(std::string_view file, int line,
                                     bool is_error, std::string_view message);

// gRPC's core tells of failed TLS handshakes in its log only, of which a
// process has one: while this is there, refusals in it go to `telemetry`, which
// tells each once a minute, and nothing goes to stderr by itself. Where there
// are several, the latest hears it.
//
// Thread-safe.
class GrpcLogTap {
 public:
  explicit GrpcLogTap(Telemetry& telemetry);
  ~GrpcLogTap();
  GrpcLogTap(const GrpcLogTap&) = delete;
  GrpcLogTap& operator=(const GrpcLogTap&) = delete;

  Telemetry& telemetry() const { return telemetry_; }

 private:
  Telemetry& telemetry_;
};

}  // namespace portolan

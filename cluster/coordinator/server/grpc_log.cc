#include "cluster/coordinator/server/grpc_log.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/mutex.h"

namespace portolan {
namespace {

struct Taps {
  Mutex mu;
  std::vector<const GrpcLogTap*> all ABSL_GUARDED_BY(mu);
};

// Never destroyed: gRPC's threads may log to the very end.
Taps& AllTaps() {
  static Taps& taps = *new Taps;
  return taps;
}

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// "UNKNOWN:Ssl handshake failed: ... {file:...}" without what is in braces,
// which differs from one time to the next.
std::string Essence(std::string_view message) {
  message = message.substr(0, message.find(" {"));
  constexpr std::string_view kUnknown = "UNKNOWN:";
  const size_t at = message.find(kUnknown);
  if (at == std::string_view::npos) return std::string(message);
  return std::string(message.substr(at + kUnknown.size()));
}

GrpcLine ReadHandshake(std::string_view message) {
  GrpcLine line{.cause = "handshake", .message = Essence(message)};
  if (Contains(message, "Handshake timed out")) {
    line.cause = "silent connection";
    line.message = "the TLS handshake did not end in time";
  } else if (Contains(message, "certificate verify failed")) {
    line.cause = "certificate";
    line.message = absl::StrCat(
        "the client's certificate has expired or was not signed by "
        "--tls-client-ca: ",
        line.message);
  }
  return line;
}

void Hear(gpr_log_func_args* args) {
  const std::optional<GrpcLine> line =
      ReadGrpcLine(args->file, args->line,
                   args->severity == GPR_LOG_SEVERITY_ERROR, args->message);
  if (!line) return;
  Taps& taps = AllTaps();
  MutexLock lock(taps.mu);
  if (taps.all.empty()) return;
  taps.all.back()->telemetry().Refused(line->address, line->cause,
                                       line->message);
}

}  // namespace

std::optional<GrpcLine> ReadGrpcLine(std::string_view file, int line,
                                     bool is_error, std::string_view message) {
  const std::string_view name = file.substr(file.rfind('/') + 1);
  if (name == "chttp2_server.cc" && message.starts_with("Handshaking failed")) {
    return ReadHandshake(message);
  }
  // The same once more.
  if (name == "ssl_transport_security.cc" || name == "security_handshaker.cc") {
    return std::nullopt;
  }
  constexpr std::string_view kGoaway = ": Sending goaway err=";
  if (const size_t at = message.find(kGoaway);
      at != std::string_view::npos &&
      Contains(message, "before handshake timeout")) {
    const std::string_view peer = message.substr(0, at);
    return GrpcLine{.address = std::string(peer.substr(0, peer.rfind(':'))),
                    .cause = "silent connection",
                    .message = Essence(message.substr(at))};
  }
  if (!is_error) return std::nullopt;
  return GrpcLine{.cause = "grpc",
                  .message = absl::StrCat(std::string(name), ":", line, ": ",
                                          Essence(message))};
}

// Failed handshakes are told at the level of debugging only.
GrpcLogTap::GrpcLogTap(Telemetry& telemetry) : telemetry_(telemetry) {
  Taps& taps = AllTaps();
  MutexLock lock(taps.mu);
  taps.all.push_back(this);
  gpr_set_log_function(Hear);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_DEBUG);
}

GrpcLogTap::~GrpcLogTap() {
  Taps& taps = AllTaps();
  MutexLock lock(taps.mu);
  std::erase(taps.all, this);
  if (!taps.all.empty()) return;
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(nullptr);
}

}  // namespace portolan

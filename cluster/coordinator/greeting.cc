#include "cluster/coordinator/greeting.h"

#include <algorithm>

namespace portolan {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr size_t kFrameHeader = 9;
static_assert(kPreface.size() + kFrameHeader == kGreetingBytes);
constexpr size_t kTlsBytes = 6;

// Length (3 bytes), type, flags, stream (4 bytes).
bool IsSettings(std::string_view header) {
  const auto at = [header](size_t i) {
    return static_cast<unsigned char>(header[i]);
  };
  const int length = at(0) << 16 | at(1) << 8 | at(2);
  const bool our_stream =
      (at(5) & 0x7f) == 0 && at(6) == 0 && at(7) == 0 && at(8) == 0;
  return at(3) == 4 && at(4) == 0 && our_stream && length % 6 == 0;
}

Greeting JudgeHttp2(std::string_view bytes) {
  const size_t known = std::min(bytes.size(), kPreface.size());
  if (bytes.substr(0, known) != kPreface.substr(0, known)) {
    return Greeting::kNonsense;
  }
  if (bytes.size() < kGreetingBytes) return Greeting::kMore;
  return IsSettings(bytes.substr(kPreface.size(), kFrameHeader))
             ? Greeting::kWelcome
             : Greeting::kNonsense;
}

// A record of type handshake (22) and of version 3.x, whose first message is
// of type client_hello (1).
Greeting JudgeTls(std::string_view bytes) {
  const auto differs = [bytes](size_t i, char wanted) {
    return i < bytes.size() && bytes[i] != wanted;
  };
  if (differs(0, 22) || differs(1, 3) || differs(5, 1)) {
    return Greeting::kNonsense;
  }
  return bytes.size() < kTlsBytes ? Greeting::kMore : Greeting::kWelcome;
}

}  // namespace

Greeting JudgeGreeting(std::string_view first_bytes, bool tls) {
  return tls ? JudgeTls(first_bytes) : JudgeHttp2(first_bytes);
}

}  // namespace portolan

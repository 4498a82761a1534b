#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace portolan {

// What the first bytes of a connection say of it.
enum class Greeting : uint8_t {
  kMore,      // too few to tell
  kWelcome,   // a gRPC client's, as far as they go
  kNonsense,  // nobody that knows our protocol begins so
};

// So many bytes always suffice.
constexpr size_t kGreetingBytes = 33;

// Policy: a client of gRPC begins with the preface of HTTP/2 and a SETTINGS
// frame, and in TLS with a ClientHello. Both are sent before the client waits
// for anything.
// Source: RFC 9113, 3.4 and 6.5; RFC 8446, 5.1 and 4.1.2.
Greeting JudgeGreeting(std::string_view first_bytes, bool tls);

}  // namespace portolan

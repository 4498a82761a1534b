#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/coordinator/server/grpc_log.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Lines as gRPC 1.51 writes them, shortened.
constexpr char kExpired[] =
    "Handshaking failed: UNKNOWN:Ssl handshake failed: SSL_ERROR_SSL: "
    "error:0A000086:SSL routines::certificate verify failed "
    "{file:\"./src/security_handshaker.cc\", file_line:393, "
    "created_time:\"2026-11-27T10:12:09.8+00:00\"}";
constexpr char kTimedOut[] =
    "Handshaking failed: UNKNOWN:Handshake read failed {file_line:487, "
    "children:[UNKNOWN:FD Shutdown {children:[UNKNOWN:Handshake timed out "
    "{file_line:167}]}]}";
constexpr char kNoSettings[] =
    "ipv4:127.0.0.1:51830: Sending goaway err=UNKNOWN:Did not receive HTTP/2 "
    "settings before handshake timeout {file_line:418}";

TEST(GrpcLogTest, AFailedHandshakeIsToldOnceWithItsCause) {
  const auto line = ReadGrpcLine("./src/core/chttp2_server.cc", 448,
                                 /*is_error=*/false, kExpired);

  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(line->cause, "certificate");
  EXPECT_THAT(line->message, HasSubstr("expired"));
  EXPECT_THAT(line->message, HasSubstr("certificate verify failed"));
  EXPECT_THAT(line->message, Not(HasSubstr("created_time")))
      << "what differs each time would defeat telling it once";
  EXPECT_FALSE(ReadGrpcLine("./src/core/ssl_transport_security.cc", 1501,
                            /*is_error=*/true,
                            "Handshake failed with fatal error SSL_ERROR_SSL")
                   .has_value());
}

TEST(GrpcLogTest, ASilentConnectionHasTheSameNameWithTlsAndWithout) {
  const auto tls =
      ReadGrpcLine("chttp2_server.cc", 448, /*is_error=*/false, kTimedOut);
  const auto plain = ReadGrpcLine("chttp2_transport.cc", 1676,
                                  /*is_error=*/false, kNoSettings);

  ASSERT_TRUE(tls.has_value() && plain.has_value());
  EXPECT_EQ(tls->cause, "silent connection");
  EXPECT_EQ(plain->cause, "silent connection");
  EXPECT_EQ(plain->address, "ipv4:127.0.0.1");
}

TEST(GrpcLogTest, OtherErrorsAreToldAndChatterIsNot) {
  const auto error = ReadGrpcLine("a/tcp_server_posix.cc", 7, /*is_error=*/true,
                                  "Failed accept4: Too many open files");

  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->message,
            "tcp_server_posix.cc:7: Failed accept4: Too many open files");
  EXPECT_FALSE(
      ReadGrpcLine("a/tcp_server_posix.cc", 7, /*is_error=*/false, "hello")
          .has_value());
}

}  // namespace
}  // namespace portolan

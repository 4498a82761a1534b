#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/coordinator_server_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kClientToken[] = "client-token-0123456789";
constexpr char kWorkerToken[] = "worker-token-0123456789";

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Certificates of an authority, a server, a rank, and a rank whose time is
// over, made by openssl in the folder of the test.
class SecurityTest : public CoordinatorTest {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_);
    options_.log_file = (dir_ / "log.jsonl").string();
  }
  std::string File(const std::string& name) { return (dir_ / name).string(); }

  void Openssl(const std::string& arguments) {
    const std::string command = absl::StrCat(
        "cd '", dir_.string(), "' && openssl ", arguments, " 2>openssl.log");
    ASSERT_EQ(std::system(command.c_str()), 0)
        << command << "\n"
        << ReadFile(dir_ / "openssl.log");
  }
  void MakeAuthority() {
    Openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 "
        "-subj /CN=authority");
  }
  // `days` < 0: it has expired already.
  void MakeCertificate(const std::string& name, int days) {
    Openssl(absl::StrCat("req -newkey rsa:2048 -nodes -keyout ", name,
                         ".key -out ", name, ".csr -subj /CN=", name));
    std::ofstream(dir_ / "names")
        << "subjectAltName=DNS:localhost,IP:127.0.0.1";
    Openssl(absl::StrCat("x509 -req -in ", name,
                         ".csr -CA ca.pem -CAkey ca.key -CAcreateserial "
                         "-extfile names -out ",
                         name, ".pem -days ", days));
  }
  void UseTls() {
    MakeAuthority();
    MakeCertificate("server", 2);
    options_.security.tls_cert = File("server.pem");
    options_.security.tls_key = File("server.key");
    options_.security.tls_client_ca = File("ca.pem");
  }
  void UseTokens() {
    std::ofstream(dir_ / "tokens") << "ann client " << kClientToken << "\n"
                                   << "bob client bob-token-0123456789\n"
                                   << "ranks worker " << kWorkerToken << "\n";
    options_.security.token_file = File("tokens");
  }
  std::shared_ptr<grpc::ChannelCredentials> TlsCredentials(
      const std::string& certificate = "") {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = ReadFile(dir_ / "ca.pem");
    if (!certificate.empty()) {
      ssl.pem_cert_chain = ReadFile(dir_ / (certificate + ".pem"));
      ssl.pem_private_key = ReadFile(dir_ / (certificate + ".key"));
    }
    return grpc::SslCredentials(ssl);
  }

  grpc::Status SubmitAs(const std::string& token,
                        std::shared_ptr<grpc::ChannelCredentials> credentials =
                            grpc::InsecureChannelCredentials()) {
    return SubmitTo(coordinator_->address(), token, std::move(credentials));
  }
  grpc::Status SubmitTo(const std::string& address, const std::string& token,
                        std::shared_ptr<grpc::ChannelCredentials> credentials) {
    const auto stub = v1::Inference::NewStub(
        grpc::CreateChannel(address, std::move(credentials)));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTestPatience));
    if (!token.empty()) {
      context.AddMetadata("authorization", "Bearer " + token);
    }
    v1::SubmitResponse response;
    const grpc::Status status = stub->Submit(&context, Request(), &response);
    last_id_ = response.request_id();
    return status;
  }
  grpc::Status GetAs(const std::string& token, const std::string& id) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    v1::GetRequest request;
    request.set_request_id(id);
    v1::RequestInfo info;
    return client_->Get(&context, request, &info);
  }
  int Connect() { return ConnectTo(coordinator_->address()); }
  static int ConnectTo(const std::string& listener) {
    const std::vector<std::string> parts = absl::StrSplit(listener, ':');
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::stoi(parts[1])));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    EXPECT_EQ(
        connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  static int OpenFiles() {
    int count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/self/fd")) {
      ++count;
    }
    return count;
  }

  std::string last_id_;
};

TEST_F(SecurityTest, LetsInWhoHasATokenAndNobodyElse) {
  UseTokens();
  Start();

  EXPECT_TRUE(SubmitAs(kClientToken).ok());
  for (const char* token : {"", "wrong-token-0123456789"}) {
    EXPECT_EQ(SubmitAs(token).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  EXPECT_EQ(SubmitAs(kWorkerToken).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(SecurityTest, AClientSeesItsOwnRequestsOnly) {
  UseTokens();
  Start();
  ASSERT_TRUE(SubmitAs(kClientToken).ok());

  EXPECT_TRUE(GetAs(kClientToken, last_id_).ok());
  EXPECT_EQ(GetAs("bob-token-0123456789", last_id_).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(SecurityTest, ATokenThatIsWrongIsLoggedOnceAndNotShown) {
  UseTokens();
  Start();
  for (int i = 0; i < 20; ++i) SubmitAs("wrong-token-0123456789");
  Stop();

  const std::string log = ReadFile(options_.log_file);
  EXPECT_THAT(log, HasSubstr("\"event\":\"denied\""));
  EXPECT_EQ(log.find("denied"), log.rfind("denied"));
  EXPECT_THAT(log, Not(HasSubstr("wrong-token")));
}

TEST_F(SecurityTest, RanksNeedATokenOfTheirRole) {
  UseTokens();
  Start();
  EXPECT_EQ(NewRank()->Ended().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SecurityTest, RanksComeInByCertificate) {
  UseTls();
  MakeCertificate("rank", 2);
  Start();

  FakeRank rank(coordinator_->address(), TlsCredentials("rank"));
  EXPECT_GT(rank.Attach().heartbeat_ms(), 0u);
  FakeRank nobody(coordinator_->address(), TlsCredentials());
  EXPECT_EQ(nobody.Ended().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SecurityTest, AClientsCertificateLetsNoRankInWhereSubjectsAreGiven) {
  UseTls();
  MakeCertificate("ann", 2);
  MakeCertificate("rank-3", 2);
  options_.security.worker_subject = "*CN=rank-*";
  Start();

  FakeRank ann(coordinator_->address(), TlsCredentials("ann"));
  EXPECT_EQ(ann.Ended().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  FakeRank rank(coordinator_->address(), TlsCredentials("rank-3"));
  EXPECT_GT(rank.Attach().heartbeat_ms(), 0u);
}

TEST_F(SecurityTest, ClientsNeedACertificateWhereThereAreNoTokens) {
  UseTls();
  MakeCertificate("client", 2);
  options_.listen = "0.0.0.0:0";
  Start();
  const std::string address = coordinator_->address();
  const std::string here =
      absl::StrCat("127.0.0.1", address.substr(address.rfind(':')));

  const grpc::Status nobody = SubmitTo(here, "", TlsCredentials());
  EXPECT_EQ(nobody.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(nobody.error_message(), HasSubstr("--tls-client-ca"));
  const grpc::Status known = SubmitTo(here, "", TlsCredentials("client"));
  EXPECT_TRUE(known.ok()) << known.error_message();
}

TEST_F(SecurityTest, AnExpiredCertificateIsRefused) {
  UseTls();
  MakeCertificate("old", -1);
  Start();

  FakeRank rank(coordinator_->address(), TlsCredentials("old"));

  EXPECT_EQ(rank.Ended().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, PlainTextOnATlsPortIsRefused) {
  UseTls();
  UseTokens();
  Start();

  EXPECT_EQ(SubmitAs(kClientToken).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(SubmitAs(kClientToken, TlsCredentials()).ok());
}

TEST_F(SecurityTest, GarbageAndSilentConnectionsHoldUpNobodyAndLeakNothing) {
  UseTokens();
  Start();
  ASSERT_TRUE(SubmitAs(kClientToken).ok());
  const int files = OpenFiles();

  std::vector<int> half_open;
  for (int i = 0; i < 200; ++i) half_open.push_back(Connect());
  for (int i = 0; i < 20; ++i) {
    const int fd = Connect();
    const std::string garbage(1000, static_cast<char>(i * 13));
    EXPECT_EQ(send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL), 1000);
    // The server hangs up.
    char buffer[4096];
    while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
    }
    close(fd);
  }

  EXPECT_TRUE(SubmitAs(kClientToken).ok());
  for (const int fd : half_open) close(fd);
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (OpenFiles() > files + 5 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_LE(OpenFiles(), files + 5);
}

TEST_F(SecurityTest, DoesNotListenToTheWorldUnlessItIsSafe) {
  options_.listen = "0.0.0.0:0";
  const auto open = Coordinator::Start(options_);
  EXPECT_TRUE(absl::IsFailedPrecondition(open.status()));
  EXPECT_THAT(std::string(open.status().message()), HasSubstr("--insecure"));

  UseTokens();
  EXPECT_FALSE(Coordinator::Start(options_).ok()) << "tokens in plain text";
  UseTls();
  EXPECT_TRUE(Coordinator::Start(options_).ok());
  options_.security = {.insecure = true};
  EXPECT_TRUE(Coordinator::Start(options_).ok());
}

TEST_F(SecurityTest, HttpDoesNotListenToTheWorldUnlessToldTo) {
  for (const char* open :
       {"0.0.0.0:0", "0", "[::]:0", "localhost:0,0.0.0.0:0"}) {
    options_.http = open;
    const auto started = Coordinator::Start(options_);
    ASSERT_FALSE(started.ok()) << open;
    EXPECT_THAT(std::string(started.status().message()), HasSubstr("--http"));
  }
  UseTls();
  options_.http = "0.0.0.0:0";
  EXPECT_TRUE(absl::IsFailedPrecondition(Coordinator::Start(options_).status()))
      << "TLS does not cover it";
  options_.security.insecure = true;
  EXPECT_TRUE(Coordinator::Start(options_).ok());
}

TEST_F(SecurityTest, SilentConnectionsDoNotHoldUpTheMetrics) {
  options_.http = "127.0.0.1:0";
  Start();
  std::vector<int> silent;
  for (int i = 0; i < 48; ++i) {
    silent.push_back(ConnectTo(coordinator_->http_address()));
  }
  const int fd = ConnectTo(coordinator_->http_address());
  const timeval patience = {.tv_sec = 20, .tv_usec = 0};
  ASSERT_EQ(
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
  const std::string get = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_GT(send(fd, get.data(), get.size(), MSG_NOSIGNAL), 0);
  std::string answer(12, '\0');
  const ssize_t got = recv(fd, answer.data(), answer.size(), MSG_WAITALL);

  EXPECT_EQ(got, 12);
  EXPECT_EQ(answer, "HTTP/1.1 200");
  close(fd);
  for (const int other : silent) close(other);
}

TEST_F(SecurityTest, NamesTheFlagOfAFileThatIsBad) {
  options_.security.token_file = File("nothing");
  EXPECT_THAT(std::string(Coordinator::Start(options_).status().message()),
              HasSubstr("--token-file"));
  options_.security = {.tls_cert = File("nothing"), .tls_key = File("no")};
  EXPECT_THAT(std::string(Coordinator::Start(options_).status().message()),
              HasSubstr("--tls-cert"));
  options_.security = {.tls_cert = File("nothing")};
  EXPECT_TRUE(absl::IsInvalidArgument(Coordinator::Start(options_).status()));
}

}  // namespace
}  // namespace portolan

#include "cluster/coordinator/server/http_server.h"

#include <civetweb.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

// A connection that says nothing holds one thread for this long: a scrape that
// comes with a crowd of them waits for crowd / threads timeouts.
constexpr char kNumThreads[] = "16";
constexpr char kRequestTimeoutMs[] = "1000";

int Answer(mg_connection* connection, void* data) {
  const auto& handler = *static_cast<const HttpServer::Handler*>(data);
  const HttpAnswer answer = handler();
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\n"
            "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            "Content-Length: %zu\r\nConnection: close\r\n\r\n",
            answer.status, answer.status == 200 ? "OK" : "Service Unavailable",
            answer.text.size());
  mg_write(connection, answer.text.data(), answer.text.size());
  return answer.status;
}

// civetweb's own messages would go to stderr; what matters is the status here.
int KeepQuiet(const mg_connection*, const char*) { return 1; }

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const std::string& listen, std::map<std::string, Handler> handlers) {
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(handlers)));
  std::string port = listen;
  if (port.rfind("localhost:", 0) == 0) port.replace(0, 9, "127.0.0.1");
  const char* options[] = {
      "listening_ports",    port.c_str(),      "num_threads", kNumThreads,
      "request_timeout_ms", kRequestTimeoutMs, nullptr};
  mg_callbacks callbacks = {};
  callbacks.log_message = KeepQuiet;
  server->context_ = mg_start(&callbacks, nullptr, options);
  mg_server_port bound = {};
  if (server->context_ == nullptr ||
      mg_get_server_ports(server->context_, 1, &bound) < 1) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on --http ", listen,
                     "; is it in use, or no address of this machine?"));
  }
  server->port_ = bound.port;
  for (const auto& [path, handler] : server->handlers_) {
    mg_set_request_handler(server->context_, path.c_str(), Answer,
                           const_cast<Handler*>(&handler));
  }
  return server;
}

HttpServer::~HttpServer() {
  if (context_ != nullptr) mg_stop(context_);
}

}  // namespace portolan

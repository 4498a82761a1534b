#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct mg_context;

namespace portolan {

struct HttpAnswer {
  int status = 200;
  std::string text;
};

// A small HTTP server for scrapers and people: GET of a few fixed paths.
// Handlers run on its threads, several at a time.
class HttpServer {
 public:
  using Handler = std::function<HttpAnswer()>;

  // `listen` is HOST:PORT or PORT (all addresses); port 0 takes a free one.
  // Errors: kUnavailable naming --http.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& listen, std::map<std::string, Handler> handlers);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const { return port_; }

 private:
  explicit HttpServer(std::map<std::string, Handler> handlers)
      : handlers_(std::move(handlers)) {}

  const std::map<std::string, Handler> handlers_;
  mg_context* context_ = nullptr;
  int port_ = 0;
};

}  // namespace portolan

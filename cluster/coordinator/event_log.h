#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "cluster/coordinator/mailbox.h"

namespace portolan {

// Lines, one JSON object each, for people and their tools: to stderr or to a
// file. A thread of its own writes them, so that a slow disk or terminal holds
// up nothing; beyond a bound lines are dropped and their number is told.
//
// Thread-safe.
class EventLog {
 public:
  // Appends to `path`; empty: stderr.
  // Errors: kPermissionDenied, kNotFound naming --log-file.
  static absl::StatusOr<std::unique_ptr<EventLog>> Open(
      const std::string& path);
  // Writes what is left.
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  void Write(std::string line);

 private:
  explicit EventLog(std::FILE* file);
  void Loop();

  std::FILE* const file_;
  std::atomic<int64_t> waiting_ = 0;
  std::atomic<int64_t> dropped_ = 0;
  Mailbox<std::string> lines_;
  std::thread thread_;
};

}  // namespace portolan

#include "cluster/coordinator/event_log.h"

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

constexpr int64_t kMaxWaiting = 10'000;

}  // namespace

absl::StatusOr<std::unique_ptr<EventLog>> EventLog::Open(
    const std::string& path) {
  std::FILE* file = path.empty() ? stderr : std::fopen(path.c_str(), "ae");
  if (file == nullptr) {
    return absl::PermissionDeniedError(absl::StrCat(
        "cannot open --log-file ", path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<EventLog>(new EventLog(file));
}

EventLog::EventLog(std::FILE* file)
    : file_(file), thread_([this] { Loop(); }) {}

EventLog::~EventLog() {
  lines_.Close();
  thread_.join();
  if (file_ != stderr) std::fclose(file_);
}

void EventLog::Write(std::string line) {
  if (waiting_ >= kMaxWaiting) {
    ++dropped_;
    return;
  }
  ++waiting_;
  lines_.Post(std::move(line));
}

void EventLog::Loop() {
  std::vector<std::string> lines;
  while (lines_.Take(absl::Hours(1), lines)) {
    waiting_ -= static_cast<int64_t>(lines.size());
    for (std::string& line : lines) {
      line += '\n';
      std::fwrite(line.data(), 1, line.size(), file_);
    }
    const int64_t dropped = dropped_.exchange(0);
    if (dropped > 0) {
      std::fprintf(file_, "{\"event\":\"dropped_lines\",\"count\":%lld}\n",
                   static_cast<long long>(dropped));
    }
    std::fflush(file_);
  }
}

}  // namespace portolan

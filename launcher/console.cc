#include "launcher/console.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

constexpr absl::Duration kQuiet = absl::Milliseconds(500);
constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kLine = absl::Seconds(5);

}  // namespace

absl::Status Print(std::string_view text) {
  errno = 0;
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
    return absl::OkStatus();
  }
  return absl::Status(
      errno == ENOSPC ? absl::StatusCode::kResourceExhausted
                      : absl::StatusCode::kUnavailable,
      absl::StrCat("standard output: ",
                   errno == 0 ? "a write failed" : std::strerror(errno)));
}

int Report(absl::Status status) {
  status.Update(Print(""));
  if (status.ok()) return kExitDone;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return kExitFailed;
}

Progress::Progress(std::string what, bool silent)
    : what_(std::move(what)),
      silent_(silent),
      terminal_(isatty(STDERR_FILENO) != 0),
      next_(absl::Now() + kQuiet) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputs("\r\033[K", stderr);
}

void Progress::Update(int64_t done, int64_t total) {
  if (!IsDue(total)) return;
  Draw(done, total,
       absl::StrFormat("%s of %s", FormatBytes(static_cast<uint64_t>(done)),
                       FormatBytes(static_cast<uint64_t>(total))));
}

void Progress::Count(int64_t done, int64_t total) {
  if (!IsDue(total)) return;
  Draw(done, total, absl::StrFormat("%d of %d", done, total));
}

bool Progress::IsDue(int64_t total) {
  const absl::Time now = absl::Now();
  if (silent_ || now < next_ || total <= 0) return false;
  next_ = now + (terminal_ ? kRedraw : kLine);
  return true;
}

void Progress::Draw(int64_t done, int64_t total, const std::string& amount) {
  drawn_ = true;
  const int percent = static_cast<int>(100.0 * static_cast<double>(done) /
                                       static_cast<double>(total));
  const std::string line =
      absl::StrFormat("%s %3d %% (%s)", what_, percent, amount);
  std::fputs(terminal_ ? ("\r\033[K" + line).c_str() : (line + "\n").c_str(),
             stderr);
}

}  // namespace portolan

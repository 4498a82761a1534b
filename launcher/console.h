#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace portolan {

// Exit codes of all programs.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRestart = 75;  // interrupted, restart me

// Writes `text` to standard output at once.
// Errors: kResourceExhausted or kUnavailable, "standard output: ...", also for
// what was written before.
absl::Status Print(std::string_view text);

// Prints "error: ..." to stderr if `status` is not OK; returns the exit code.
// What a command wrote to standard output and could not be kept is an error.
int Report(absl::Status status);

// Tells on stderr how a long wait goes on: a bar that redraws itself on a
// terminal, a line every few seconds elsewhere, nothing if it is over soon.
// Thread-compatible.
class Progress {
 public:
  // `what`: "Loading experts". A silent one prints nothing (ranks other than
  // 0).
  Progress(std::string what, bool silent);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `total`, in bytes.
  void Update(int64_t done, int64_t total);
  // The same, of things that are counted.
  void Count(int64_t done, int64_t total);

 private:
  bool IsDue(int64_t total);
  void Draw(int64_t done, int64_t total, const std::string& amount);

  const std::string what_;
  const bool silent_;
  const bool terminal_;
  absl::Time next_;
  bool drawn_ = false;
};

}  // namespace portolan

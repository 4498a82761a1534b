#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

// How the programs declare flags: every flag also comes from the environment,
// --expert-memory from PORTOLAN_EXPERT_MEMORY.

namespace portolan {

CLI::Option* WithEnvironment(CLI::Option* option, std::string_view flag);

template <typename T>
CLI::Option* AddFlag(CLI::App& command, const char* flag, T& value,
                     const char* help) {
  return WithEnvironment(
      command.add_option(flag, value, help)->capture_default_str(), flag);
}

// Stands alone: true if it is there.
CLI::Option* AddSwitch(CLI::App& command, const char* flag, bool& value,
                       const char* help);
CLI::Option* AddSwitchFunction(CLI::App& command, const char* flag,
                               std::function<void(int64_t)> set,
                               const char* help);

// A flag that `set` takes, and nobody without it.
template <typename T>
CLI::Option* AddSetter(CLI::App& command, const char* flag,
                       std::function<void(const T&)> set, const char* help) {
  return WithEnvironment(
      command.add_option_function<T>(flag, std::move(set), help), flag);
}

// A number from `min` to `max`, which nan is not; `min` itself is none where
// `above`.
CLI::Validator NumberRange(double min, double max, bool above = false);

// A flag whose text `parse` turns into a value, or into an error that CLI11
// reports as one of usage.
template <typename T>
CLI::Option* AddParsedFlag(
    CLI::App& command, const char* flag,
    std::function<absl::StatusOr<T>(std::string_view)> parse,
    std::function<void(T)> set, const char* help) {
  CLI::Option* option = command.add_option_function<std::string>(
      flag,
      [flag, parse, set](const std::string& text) {
        absl::StatusOr<T> value = parse(text);
        if (!value.ok()) {
          throw CLI::ValidationError(flag,
                                     std::string(value.status().message()));
        }
        set(*std::move(value));
      },
      help);
  return WithEnvironment(option, flag);
}

// Texts to end before, --stop, one for each time that it is given: as they are
// written, brackets too. An empty one is an error of usage.
CLI::Option* AddStopFlag(CLI::App& command,
                         std::function<void(std::vector<std::string>)> set);

// --seed, of 64 bits: a larger one is an error of usage.
CLI::Option* AddSeedFlag(CLI::App& command, std::function<void(uint64_t)> set,
                         const char* help);

// "10s", "1.5h", "7d", or a number of seconds.
// Errors: kInvalidArgument naming the text.
absl::StatusOr<absl::Duration> ParseDurationFlag(std::string_view text);
CLI::Option* AddDurationFlag(CLI::App& command, const char* flag,
                             absl::Duration& value, const char* help);
// "64MiB" and the like; see ParseBytes().
CLI::Option* AddBytesFlag(CLI::App& command, const char* flag, int64_t& value,
                          const char* help);

}  // namespace portolan

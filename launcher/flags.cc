#include "launcher/flags.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

std::string EnvironmentName(std::string_view flag) {
  return absl::StrCat("PORTOLAN_",
                      absl::AsciiStrToUpper(absl::StrReplaceAll(
                          std::string(flag.substr(2)), {{"-", "_"}})));
}

}  // namespace

CLI::Option* WithEnvironment(CLI::Option* option, std::string_view flag) {
  return option->envname(EnvironmentName(flag));
}

CLI::Option* AddSwitch(CLI::App& command, const char* flag, bool& value,
                       const char* help) {
  return WithEnvironment(command.add_flag(flag, value, help), flag);
}

CLI::Option* AddSwitchFunction(CLI::App& command, const char* flag,
                               std::function<void(int64_t)> set,
                               const char* help) {
  return WithEnvironment(command.add_flag_function(flag, std::move(set), help),
                         flag);
}

CLI::Validator NumberRange(double min, double max, bool above) {
  const std::string range = absl::StrCat(above ? "above " : "from ", min,
                                         above ? " and at most " : " to ", max);
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        double number = 0;
        if (absl::SimpleAtod(text, &number) && number <= max &&
            (above ? number > min : number >= min)) {
          return "";
        }
        return absl::StrCat("'", text, "' must be ", range);
      },
      absl::StrCat("FLOAT ", range), "");
}

CLI::Option* AddStopFlag(CLI::App& command,
                         std::function<void(std::vector<std::string>)> set) {
  // As a list for CLI11 to read, [a,b] would be two texts and "" none.
  CLI::Option* const option = command.add_option(
      "--stop",
      [set = std::move(set)](const CLI::results_t& texts) {
        for (const std::string& text : texts) {
          if (text.empty()) {
            throw CLI::ValidationError(
                "--stop", "a stop text must have one byte at least");
          }
        }
        set(texts);
        return true;
      },
      "End before this text; may be given several times");
  option->type_name("TEXT")->multi_option_policy(
      CLI::MultiOptionPolicy::TakeAll);
  return WithEnvironment(option, "--stop");
}

CLI::Option* AddSeedFlag(CLI::App& command, std::function<void(uint64_t)> set,
                         const char* help) {
  // CLI11 would take what is too large for the largest seed.
  const auto parse = [](std::string_view text) -> absl::StatusOr<uint64_t> {
    const absl::string_view number(text.data(), text.size());
    uint64_t seed = 0;
    if (absl::SimpleAtoi(number, &seed)) return seed;
    return absl::InvalidArgumentError(
        absl::StrCat("'", number, "' must be a whole number from 0 to ",
                     std::numeric_limits<uint64_t>::max()));
  };
  return AddParsedFlag<uint64_t>(command, "--seed", parse, std::move(set),
                                 help);
}

absl::StatusOr<absl::Duration> ParseDurationFlag(std::string_view text) {
  std::string unit(text);
  double number = 0;
  absl::Duration duration;
  if (absl::SimpleAtod(unit, &number)) {
    duration = absl::Seconds(number);
  } else if (unit.ends_with('d') &&
             absl::SimpleAtod(unit.substr(0, unit.size() - 1), &number)) {
    duration = absl::Hours(24) * number;
  } else if (!absl::ParseDuration(unit, &duration)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", unit, "' is no time; write 10s, 500ms, 1.5h, 7d or seconds"));
  }
  if (duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("'", unit, "' is negative"));
  }
  return duration;
}

CLI::Option* AddDurationFlag(CLI::App& command, const char* flag,
                             absl::Duration& value, const char* help) {
  return AddParsedFlag<absl::Duration>(
             command, flag, ParseDurationFlag,
             [&value](absl::Duration duration) { value = duration; }, help)
      ->default_str(value == absl::InfiniteDuration()
                        ? "none"
                        : absl::FormatDuration(value));
}

CLI::Option* AddBytesFlag(CLI::App& command, const char* flag, int64_t& value,
                          const char* help) {
  return AddParsedFlag<int64_t>(
      command, flag, [](std::string_view text) { return ParseBytes(text); },
      [&value](int64_t bytes) { value = bytes; }, help);
}

}  // namespace portolan

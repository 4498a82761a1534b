#include "launcher/fault.h"

#include <csignal>
#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace portolan {
namespace {

absl::Status Malformed(std::string_view part) {
  return absl::InvalidArgumentError(
      absl::StrCat("PORTOLAN_FAULT: cannot read \"", std::string(part),
                   "\"; write rank=R,phase=NAME,step=S,do=kill|stop|corrupt"));
}

absl::StatusOr<ExchangePhase> ParsePhase(const std::string& name) {
  for (const ExchangePhase phase :
       {ExchangePhase::kStepRecord, ExchangePhase::kHeader,
        ExchangePhase::kPayload, ExchangePhase::kCompute,
        ExchangePhase::kCombine}) {
    if (name == ToString(phase)) return phase;
  }
  return Malformed(name);
}

// Says so first, for whoever measures what comes of it.
void Strike(Rank rank, const std::string& what, std::span<std::byte> outgoing) {
  std::fprintf(stderr, "fault: rank %d: %s\n", ToIndex(rank), what.c_str());
  if (what == "corrupt") {
    for (std::byte& byte :
         outgoing.first(std::min<size_t>(outgoing.size(), 16))) {
      byte ^= std::byte{0xff};
    }
    return;
  }
  std::raise(what == "kill" ? SIGKILL : SIGSTOP);
}

}  // namespace

absl::StatusOr<PhaseHook> ParseFault(std::string_view text, Rank rank) {
  if (text.empty()) return PhaseHook();
  std::map<std::string, std::string> parts;
  for (const auto& part :
       absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    parts.insert(pair);
  }
  int32_t struck = 0;
  int64_t step = 0;
  if (!absl::SimpleAtoi(parts["rank"], &struck))
    return Malformed(parts["rank"]);
  if (!absl::SimpleAtoi(parts["step"], &step)) return Malformed(parts["step"]);
  const auto phase = ParsePhase(parts["phase"]);
  if (!phase.ok()) return phase.status();
  const std::string what = parts["do"];
  if (what != "kill" && what != "stop" && what != "corrupt") {
    return Malformed(what);
  }
  if (Rank{struck} != rank) return PhaseHook();
  return PhaseHook([phase = *phase, step, rank, what,
                    struck_once = false](const PhaseEvent& event) mutable {
    if (struck_once || event.step != step || event.phase != phase) return;
    struck_once = true;
    Strike(rank, what, event.outgoing);
  });
}

}  // namespace portolan

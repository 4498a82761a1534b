#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "comm/token_exchange.h"
#include "runtime/base/ids.h"

namespace portolan {

// What the system tests do to a rank on purpose, from PORTOLAN_FAULT:
//
//   rank=1,phase=header,step=5,do=kill
//
// phase: step record, header, payload, compute or combine. do: kill (SIGKILL to
// itself), stop (SIGSTOP, until somebody sends SIGCONT), corrupt (damages the
// message that the phase sends). An empty text is no fault.
// Returns the hook of `rank`, null if the fault is another's.
// Errors: kInvalidArgument naming the part.
absl::StatusOr<PhaseHook> ParseFault(std::string_view text, Rank rank);

}  // namespace portolan

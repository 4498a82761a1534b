#pragma once

#include "CLI/App.hpp"
#include "absl/time/time.h"
#include "cluster/coordinator/server/coordinator.h"

namespace portolan {

// The flags of a coordinator, alone or inside `portolan serve`.
void AddCoordinatorOptions(CLI::App& command, CoordinatorOptions& options);

// How long running requests may go on after SIGTERM.
void AddGraceOption(CLI::App& command, absl::Duration& grace);

}  // namespace portolan

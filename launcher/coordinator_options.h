#pragma once

#include "CLI/App.hpp"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/coordinator/server/coordinator.h"

namespace portolan {

// The flags of a coordinator, alone or inside `portolan serve`.
void AddCoordinatorOptions(CLI::App& command, CoordinatorOptions& options);

// What to end with after CoordinatorOptions::on_broken.
absl::Status BrokenDatabase(const absl::Status& why);

// How long running requests may go on after SIGTERM.
void AddGraceOption(CLI::App& command, absl::Duration& grace);

}  // namespace portolan

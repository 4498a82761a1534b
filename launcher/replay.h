#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/trace.h"

namespace CLI {
class App;
}  // namespace CLI

namespace portolan {

// `portolan replay`: policies side by side on one recorded trace.
void AddReplayCommand(CLI::App& app, int& exit_code);

// The trace of these files (JoinTraces()). Files that end in a torn block are
// told on stderr. Errors: as ReadTrace() and JoinTraces().
absl::StatusOr<Trace> ReadTraces(const std::vector<std::string>& paths);

}  // namespace portolan

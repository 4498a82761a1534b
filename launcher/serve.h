#pragma once

#include "CLI/App.hpp"

namespace portolan {

// `portolan worker`: the ranks of a job that attaches to a coordinator.
void AddWorkerCommand(CLI::App& app, int& exit_code);

// `portolan serve`: the same with a coordinator inside rank 0.
void AddServeCommand(CLI::App& app, int& exit_code);

}  // namespace portolan

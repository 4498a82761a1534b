#pragma once

#include "CLI/App.hpp"

namespace portolan {

// `portolan bench serve`: loads a live service; `bench` is the command that has
// the other benches.
void AddBenchServeCommand(CLI::App& bench, int& exit_code);

}  // namespace portolan

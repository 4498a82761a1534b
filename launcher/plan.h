#pragma once

#include "CLI/App.hpp"

namespace portolan {

// `portolan plan`: what a job takes in memory and what its budget costs, before
// the wait; reads config and tensor headers only.
void AddPlanCommand(CLI::App& app, int& exit_code);

}  // namespace portolan

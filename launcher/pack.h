#pragma once

#include "CLI/App.hpp"

namespace portolan {

// `portolan pack`: writes a model's experts in the form in which they are
// computed, one aligned record each, so that a load is one read; or verifies
// such a file.
void AddPackCommand(CLI::App& app, int& exit_code);

}  // namespace portolan

#pragma once

namespace CLI {
class App;
}  // namespace CLI

namespace portolan {

// `portolan replay`: policies side by side on one recorded trace.
void AddReplayCommand(CLI::App& app, int& exit_code);

}  // namespace portolan

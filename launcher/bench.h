#pragma once

namespace CLI {
class App;
}  // namespace CLI

namespace portolan {

// `portolan bench model|exchange|kernels|perplexity|maps`: figures, as a table
// or as JSON.
void AddBenchCommand(CLI::App& app, int& exit_code);

// The subcommands, one file each.
void AddBenchModelCommand(CLI::App& bench, int& exit_code);
void AddBenchExchangeCommand(CLI::App& bench, int& exit_code);
void AddBenchKernelsCommand(CLI::App& bench, int& exit_code);
void AddBenchPerplexityCommand(CLI::App& bench, int& exit_code);
void AddBenchMapsCommand(CLI::App& bench, int& exit_code);

}  // namespace portolan

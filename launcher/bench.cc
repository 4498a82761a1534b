#include "launcher/bench.h"

#include "CLI/CLI.hpp"

namespace portolan {

void AddBenchCommand(CLI::App& app, int& exit_code) {
  CLI::App* bench = app.add_subcommand(
      "bench", "Measure the model, the exchange, the kernels or expert maps");
  bench->require_subcommand(1);
  AddBenchModelCommand(*bench, exit_code);
  AddBenchExchangeCommand(*bench, exit_code);
  AddBenchKernelsCommand(*bench, exit_code);
  AddBenchPerplexityCommand(*bench, exit_code);
  AddBenchMapsCommand(*bench, exit_code);
}

}  // namespace portolan

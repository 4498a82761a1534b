#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/options.h"
#include "launcher/prompts.h"

namespace CLI {
class App;
}  // namespace CLI

namespace portolan {

// `portolan generate`: prompts in, texts out, in the order of the input.
struct GenerateOptions {
  JobOptions job;
  std::optional<std::string> prompt;
  std::string prompts_file;
  SamplingWishes wishes;
  bool jsonl = false;
  std::string stats_file;
};

// Adds the subcommand; `exit_code` is set when it has run.
void AddGenerateCommand(CLI::App& app, int& exit_code);

}  // namespace portolan

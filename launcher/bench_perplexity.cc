#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "launcher/bench.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/memory_plan.h"
#include "launcher/options.h"
#include "launcher/wiring.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

struct PerplexityOptions {
  JobOptions job;
  std::string text_file;
  int64_t context = 512;
  bool json = false;
};

// Of one window: the negative log-likelihood of all its tokens but the first.
struct WindowLoss {
  double nats = 0;
  int64_t tokens = 0;
};

// -log softmax(logits)[token].
double LossOf(std::span<const float> logits, int32_t token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return std::log(sum) + largest - double{logits[static_cast<size_t>(token)]};
}

// Computes windows of a text on one rank, in lock-step with the others.
class WindowRunner {
 public:
  WindowRunner(RankRuntime& rank, int64_t chunk) : rank_(rank), chunk_(chunk) {}

  // An empty window takes part in as many steps as one of `steps_for` tokens.
  absl::StatusOr<WindowLoss> Run(std::span<const int32_t> window,
                                 int64_t steps_for) {
    WindowLoss loss;
    std::vector<int32_t> pages;
    for (int64_t first = 0; first < steps_for; first += chunk_) {
      const auto size = static_cast<int64_t>(window.size());
      const int64_t begin = std::min(first, size);
      const int64_t count = std::min(chunk_, size - begin);
      PORTOLAN_CHECK(rank_.kv().Grow(pages, begin + count));
      PORTOLAN_ASSIGN_OR_RETURN(const MatrixView<const float> logits,
                                Step(window.subspan(static_cast<size_t>(begin),
                                                    static_cast<size_t>(count)),
                                     begin, pages));
      for (int64_t row = 0; row < count && begin + row + 1 < size; ++row) {
        const auto next = static_cast<size_t>(begin + row + 1);
        loss.nats += LossOf(logits.Row(row), window[next]);
        ++loss.tokens;
      }
    }
    rank_.kv().Release(pages);
    return loss;
  }

 private:
  absl::StatusOr<MatrixView<const float>> Step(std::span<const int32_t> tokens,
                                               int64_t first_position,
                                               std::span<const int32_t> pages) {
    step_.clear();
    if (!tokens.empty()) {
      step_.push_back({.tokens = tokens,
                       .first_position = first_position,
                       .pages = pages,
                       .logits = LogitRows::kAll});
    }
    rank_.forward().Begin(step_);
    StepRecord record;
    record.has_work = true;
    record.rows_planned = rank_.forward().num_tokens();
    PORTOLAN_RETURN_IF_ERROR(rank_.exchange().BeginStep(record).status());
    return rank_.forward().Run(record.rows_planned);
  }

  RankRuntime& rank_;
  const int64_t chunk_;
  std::vector<ForwardSequence> step_;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text: cannot read ", path, ", or it is empty"));
  }
  return text;
}

void Print(const PerplexityOptions& options, const WindowLoss& loss,
           size_t num_windows) {
  const double mean = loss.nats / static_cast<double>(loss.tokens);
  const std::string weights(WeightFormatName(options.job.weights));
  if (!options.json) {
    std::printf("# %7s %7s %8s %8s %8s %14s %11s\n", "weights", "dense",
                "tokens", "windows", "context", "nats per token", "perplexity");
    std::printf(
        "  %7s %7s %8lld %8zu %8lld %14.5f %11.4f\n", weights.c_str(),
        std::string(WeightFormatName(options.job.dense_weights)).c_str(),
        static_cast<long long>(loss.tokens), num_windows,
        static_cast<long long>(options.context), mean, std::exp(mean));
    return;
  }
  const nlohmann::ordered_json json = {
      {"weights", weights},
      {"dense_weights",
       std::string(WeightFormatName(options.job.dense_weights))},
      {"tokens", loss.tokens},
      {"windows", num_windows},
      {"context", options.context},
      {"nats_per_token", mean},
      {"perplexity", std::exp(mean)}};
  std::printf("%s\n", json.dump(2).c_str());
}

// Windows are dealt out to the ranks in turn; rank 0 adds up their losses in
// the order of the text, so that the sum is the same on any number of ranks.
absl::Status RunRank(const PerplexityOptions& options,
                     std::span<const std::span<const int32_t>> windows,
                     const Model& model, Transport& transport) {
  class : public TokenSink {
    bool OnToken(int64_t /*id*/, const GeneratedToken& /*token*/) override {
      return false;
    }
    void OnFinish(int64_t /*id*/, const SequenceEnd& /*end*/) override {}
  } sink;
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<RankRuntime> rank,
      RankRuntime::Create(options.job, model, transport, sink));
  WindowRunner runner(*rank, options.job.logit_rows);
  const auto world = static_cast<size_t>(transport.world_size());
  const auto mine = static_cast<size_t>(ToIndex(transport.rank()));
  nlohmann::json losses = nlohmann::json::array();
  for (size_t first = 0; first < windows.size(); first += world) {
    std::span<const int32_t> window;
    if (first + mine < windows.size()) window = windows[first + mine];
    PORTOLAN_ASSIGN_OR_RETURN(
        const WindowLoss loss,
        runner.Run(window, static_cast<int64_t>(windows[first].size())));
    losses.push_back({loss.nats, loss.tokens});
  }
  PORTOLAN_RETURN_IF_ERROR(rank->SaveProfile());
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      GatherToRoot(transport, losses.dump(), absl::Minutes(10)));
  if (mine != 0) return absl::OkStatus();
  std::vector<nlohmann::json> of_rank;
  for (const std::string& text : texts) {
    of_rank.push_back(nlohmann::json::parse(text));
  }
  WindowLoss sum;
  for (size_t i = 0; i < windows.size(); ++i) {
    const nlohmann::json& loss = of_rank[i % world][i / world];
    sum.nats += loss[0].get<double>();
    sum.tokens += loss[1].get<int64_t>();
  }
  Print(options, sum, windows.size());
  return absl::OkStatus();
}

absl::Status RunPerplexity(PerplexityOptions options) {
  // Nobody watches the gates here.
  if (!options.job.trace_file.empty() || !options.job.history_file.empty()) {
    return absl::InvalidArgumentError(
        "bench perplexity records no --trace and learns no --history; drop "
        "them");
  }
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                            ReadText(options.text_file));
  constexpr int64_t kMostLogitRows = 128;  // each as wide as the vocabulary
  options.job.logit_rows =
      std::min({options.context, options.job.tokens_per_step, kMostLogitRows});
  options.job.kv_tokens = options.context;
  options.job.input_files.push_back({"--text", options.text_file});
  return RunJob(options.job, [&](const Model& model, RunWorld run_world) {
    if (options.context > model.config.max_position) {
      return absl::InvalidArgumentError(
          absl::StrCat("--context ", options.context, ": the model has ",
                       model.config.max_position, " positions"));
    }
    PORTOLAN_RETURN_IF_ERROR(CheckKvHoldsSequences(
        options.job, model.config, /*num_sequences=*/1, options.context));
    PORTOLAN_ASSIGN_OR_RETURN(
        const std::vector<int32_t> tokens,
        model.tokenizer->Encode(text, /*add_special_tokens=*/false));
    std::vector<std::span<const int32_t>> windows;
    const auto context = static_cast<size_t>(options.context);
    for (size_t first = 0; first + 1 < tokens.size(); first += context) {
      windows.push_back(std::span(tokens).subspan(
          first, std::min(context, tokens.size() - first)));
    }
    if (windows.empty()) {
      return absl::InvalidArgumentError(
          "--text: two tokens are needed at least");
    }
    return run_world([&](Transport& transport) {
      return RunRank(options, windows, model, transport);
    });
  });
}

}  // namespace

void AddBenchPerplexityCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<PerplexityOptions>();
  options->job.batch = 1;
  CLI::App* command = bench.add_subcommand(
      "perplexity",
      "How well the model foretells a text, in windows that begin anew");
  AddJobOptions(*command, options->job);
  AddFlag(*command, "--text", options->text_file, "UTF-8 text to read")
      ->required()
      ->check(CLI::ExistingFile);
  AddFlag(*command, "--context", options->context, "Tokens of a window")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunPerplexity(*options)); });
}

}  // namespace portolan

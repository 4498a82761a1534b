#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "launcher/bench.h"
#include "launcher/console.h"
#include "launcher/options.h"
#include "launcher/wiring.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/philox.h"

namespace portolan {
namespace {

struct BenchModelOptions {
  JobOptions job;
  int64_t prompt_tokens = 128;
  int64_t generate = 128;
  int rounds = 3;
  bool json = false;
};

// Tokens per second of one round; of all ranks together.
struct Round {
  double prefill = 0;
  double decode = 0;
};

// The sequences of one rank, driven in lock-step with the other ranks: first
// all prompts, then one token a step for each. Greedy sampling is not part of
// the figures; the tokens are random, with a fixed seed.
class LockStep {
 public:
  LockStep(const BenchModelOptions& options, const Model& model,
           RankRuntime& rank, int rank_index)
      : options_(options),
        rank_(rank),
        sequences_(static_cast<size_t>(options.job.batch)) {
    const auto vocab = static_cast<uint64_t>(model.config.vocab_size);
    uint64_t counter = 0;
    for (Sequence& sequence : sequences_) {
      sequence.tokens.resize(
          static_cast<size_t>(options.prompt_tokens + options.generate));
      for (int32_t& token : sequence.tokens) {
        token = static_cast<int32_t>(
            Philox4x32(static_cast<uint64_t>(rank_index),
                       {static_cast<uint32_t>(counter++), 0, 0, 0})[0] %
            vocab);
      }
    }
  }

  absl::StatusOr<Round> Run() {
    const absl::Time start = absl::Now();
    PORTOLAN_RETURN_IF_ERROR(Prefill());
    const absl::Time prefilled = absl::Now();
    for (int64_t i = 0; i < options_.generate; ++i) {
      PORTOLAN_RETURN_IF_ERROR(Step(1));
    }
    const absl::Time end = absl::Now();
    for (Sequence& sequence : sequences_) {
      rank_.kv().Release(sequence.pages);
      sequence.computed = 0;
    }
    const auto batch = static_cast<double>(sequences_.size());
    Round round;
    round.prefill = batch * static_cast<double>(options_.prompt_tokens) /
                    absl::ToDoubleSeconds(prefilled - start);
    round.decode = batch * static_cast<double>(options_.generate) /
                   absl::ToDoubleSeconds(end - prefilled);
    return round;
  }

 private:
  struct Sequence {
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    int64_t computed = 0;
  };

  // As many prompt tokens a step as the limit allows, sequence by sequence.
  absl::Status Prefill() {
    size_t at = 0;
    while (at < sequences_.size() && options_.prompt_tokens > 0) {
      step_.clear();
      int64_t room = options_.job.tokens_per_step;
      while (at < sequences_.size() && room > 0) {
        Sequence& sequence = sequences_[at];
        const int64_t count =
            std::min(room, options_.prompt_tokens - sequence.computed);
        Schedule(sequence, count);
        room -= count;
        if (sequence.computed == options_.prompt_tokens) ++at;
      }
      PORTOLAN_RETURN_IF_ERROR(RunStep());
    }
    return absl::OkStatus();
  }

  absl::Status Step(int64_t count) {
    step_.clear();
    for (Sequence& sequence : sequences_) Schedule(sequence, count);
    return RunStep();
  }

  void Schedule(Sequence& sequence, int64_t count) {
    const int64_t end = sequence.computed + count;
    PORTOLAN_CHECK(rank_.kv().Grow(sequence.pages, end));
    step_.push_back(
        {.tokens = std::span<const int32_t>(sequence.tokens)
                       .subspan(static_cast<size_t>(sequence.computed),
                                static_cast<size_t>(count)),
         .first_position = sequence.computed,
         .pages = sequence.pages,
         .logits = end >= options_.prompt_tokens ? LogitRows::kLast
                                                 : LogitRows::kNone});
    sequence.computed = end;
  }

  absl::Status RunStep() {
    rank_.forward().Begin(step_);
    StepRecord record;
    record.has_work = true;
    record.rows_planned = rank_.forward().num_tokens();
    PORTOLAN_RETURN_IF_ERROR(rank_.exchange().BeginStep(record).status());
    return rank_.forward().Run(record.rows_planned).status();
  }

  const BenchModelOptions& options_;
  RankRuntime& rank_;
  std::vector<Sequence> sequences_;
  std::vector<ForwardSequence> step_;
};

// Receives nothing: the bench samples nothing.
class NullSink : public TokenSink {
 public:
  bool OnToken(int64_t, int32_t) override { return false; }
  void OnFinish(int64_t, FinishReason) override {}
};

struct Spread {
  double median = 0, least = 0, most = 0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

void PrintTable(const BenchModelOptions& options, const RankRuntime& rank,
                int ranks, const Spread& prefill, const Spread& decode) {
  std::printf("# %s, %s kernels\n", CpuModelName().c_str(),
              std::string(CpuPathName(rank.cpu_path())).c_str());
  std::printf("# %6s %7s %6s %7s %6s  %-28s %-28s\n", "ranks", "threads",
              "batch", "prompt", "gen", "prefill tok/s [min-max]",
              "decode tok/s [min-max]");
  const auto cell = [](const Spread& s) {
    return absl::StrFormat("%.1f [%.1f-%.1f]", s.median, s.least, s.most);
  };
  std::printf("  %6d %7d %6d %7lld %6lld  %-28s %-28s\n", ranks,
              rank.num_threads(), options.job.batch,
              static_cast<long long>(options.prompt_tokens),
              static_cast<long long>(options.generate), cell(prefill).c_str(),
              cell(decode).c_str());
}

void PrintJson(const BenchModelOptions& options, const RankRuntime& rank,
               int ranks, const Spread& prefill, const Spread& decode) {
  const auto spread = [](const Spread& s) {
    return nlohmann::ordered_json{
        {"median", s.median}, {"min", s.least}, {"max", s.most}};
  };
  const nlohmann::ordered_json json = {
      {"cpu", CpuModelName()},
      {"kernels", std::string(CpuPathName(rank.cpu_path()))},
      {"ranks", ranks},
      {"threads", rank.num_threads()},
      {"batch", options.job.batch},
      {"prompt_tokens", options.prompt_tokens},
      {"gen", options.generate},
      {"rounds", options.rounds},
      {"prefill_tokens_per_s", spread(prefill)},
      {"decode_tokens_per_s", spread(decode)}};
  std::printf("%s\n", json.dump(2).c_str());
}

absl::Status RunRank(const BenchModelOptions& options, const Model& model,
                     Transport& transport) {
  NullSink sink;
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<RankRuntime> rank,
      RankRuntime::Create(options.job, model, transport, sink));
  LockStep lock_step(options, model, *rank, ToIndex(transport.rank()));
  PORTOLAN_RETURN_IF_ERROR(lock_step.Run().status());  // warms up
  std::vector<double> prefill, decode;
  for (int i = 0; i < options.rounds; ++i) {
    PORTOLAN_ASSIGN_OR_RETURN(const Round round, lock_step.Run());
    prefill.push_back(round.prefill * transport.world_size());
    decode.push_back(round.decode * transport.world_size());
  }
  if (transport.rank() != Rank{0}) return absl::OkStatus();
  (options.json ? PrintJson : PrintTable)(options, *rank,
                                          transport.world_size(),
                                          SpreadOf(prefill), SpreadOf(decode));
  return absl::OkStatus();
}

absl::Status RunBenchModel(BenchModelOptions options) {
  options.job.kv_tokens =
      (options.prompt_tokens + options.generate) * options.job.batch;
  options.job.needs_tokenizer = false;
  return RunJob(options.job, [&](const Model& model, RunWorld run_world) {
    const int64_t context = options.prompt_tokens + options.generate;
    if (context > model.config.max_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--prompt-tokens and --gen make ", context,
          " positions; the model has ", model.config.max_position));
    }
    return run_world([&](Transport& transport) {
      return RunRank(options, model, transport);
    });
  });
}

}  // namespace

void AddBenchModelCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchModelOptions>();
  options->job.batch = 1;
  CLI::App* command = bench.add_subcommand(
      "model", "Prefill and decode tokens/s on random token ids");
  AddJobOptions(*command, options->job);
  command
      ->add_option("--prompt-tokens", options->prompt_tokens,
                   "Tokens of each prompt")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  command
      ->add_option("--gen", options->generate,
                   "Tokens to decode after each prompt")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command
      ->add_option("--rounds", options->rounds,
                   "Rounds to measure, after one that warms up")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_flag("--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunBenchModel(*options)); });
}

}  // namespace portolan

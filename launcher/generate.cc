#include "launcher/generate.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/job_agreement.h"
#include "launcher/memory_plan.h"
#include "launcher/requests.h"
#include "launcher/results.h"
#include "launcher/stats.h"
#include "launcher/wiring.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"
#include "runtime/serving/step_loop.h"
#include "runtime/serving/text_stream.h"

namespace portolan {
namespace {

absl::StatusOr<PreparedPrompt> Prepare(const Prompt& prompt, int64_t index,
                                       const GenerateOptions& options,
                                       const Model& model) {
  const TextRequest settled = SettleRequest(
      prompt, options.wishes, model.config, model.config.max_position);
  PORTOLAN_ASSIGN_OR_RETURN(Request request,
                            MakeRequest(settled, TermsOf(model), index));
  PORTOLAN_RETURN_IF_ERROR(CheckKvHolds(
      options.job, model.config, static_cast<int64_t>(request.prompt.size())));
  return PreparedPrompt{prompt.id, std::move(request), settled.stops};
}

// All prompts of the job, checked before the wait for the weights begins.
absl::StatusOr<std::vector<PreparedPrompt>> PrepareAll(
    const std::vector<Prompt>& prompts, const GenerateOptions& options,
    const Model& model) {
  std::vector<PreparedPrompt> prepared;
  for (size_t i = 0; i < prompts.size(); ++i) {
    absl::StatusOr<PreparedPrompt> one =
        Prepare(prompts[i], static_cast<int64_t>(i), options, model);
    if (!one.ok()) {
      return absl::Status(
          one.status().code(),
          absl::StrCat(prompts[i].where, ": ", one.status().message()));
    }
    prepared.push_back(*std::move(one));
  }
  return prepared;
}

// Hands this rank's share of the prompts to the engine, all at once.
class ListFeed : public RequestFeed {
 public:
  ListFeed(const std::vector<PreparedPrompt>& prompts, const Transport& world)
      : prompts_(prompts), world_(world) {}

  absl::Status Poll(Engine& engine) override {
    if (closed_) return absl::OkStatus();
    closed_ = true;
    const auto step = static_cast<size_t>(world_.world_size());
    for (auto i = static_cast<size_t>(ToIndex(world_.rank()));
         i < prompts_.size(); i += step) {
      if (absl::Status status = engine.Add(prompts_[i].request); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("prompt \"", prompts_[i].id,
                                         "\": ", status.message()));
      }
    }
    return absl::OkStatus();
  }

  bool closed() const override { return closed_; }
  // Never asked: the feed closes at once.
  absl::Status WaitForWork() override { return absl::OkStatus(); }

 private:
  const std::vector<PreparedPrompt>& prompts_;
  const Transport& world_;
  bool closed_ = false;
};

// Standard output, until it takes no more.
class Output {
 public:
  void Write(std::string_view text) {
    if (status_.ok()) status_ = Print(text);
  }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// Turns tokens into results; streams the text of a single prompt.
class ResultSink : public TokenSink {
 public:
  ResultSink(const std::vector<PreparedPrompt>& prompts,
             const Tokenizer* tokenizer, Output* stream,
             std::function<void(GenerationResult)> done)
      : prompts_(prompts),
        tokenizer_(tokenizer),
        stream_(stream),
        done_(std::move(done)) {}

  // The first step begins: the time to the first token counts from here.
  void Start(absl::Time now) { start_ = now; }

  bool OnToken(int64_t id, const GeneratedToken& generated) override {
    const int32_t token = generated.token;
    Active& active = Find(id);
    const absl::Time now = absl::Now();
    if (active.result.tokens.empty()) active.first_token = now;
    active.last_token = now;
    active.result.tokens.push_back(token);
    if (!generated.logprobs.empty()) {
      active.result.logprobs.emplace_back(generated.logprobs.begin(),
                                          generated.logprobs.end());
    }
    if (active.text == nullptr) return false;
    Emit(active, active.text->Push(token));
    return active.text->stopped() ||
           (stream_ != nullptr && !stream_->status().ok());
  }

  void OnFinish(int64_t id, const SequenceEnd& end) override {
    Active& active = Find(id);
    if (active.text != nullptr) Emit(active, active.text->Finish());
    GenerationResult& result = active.result;
    // The very last characters may complete a stop text.
    result.finish_reason = active.text != nullptr && active.text->stopped()
                               ? FinishReason::kStop
                               : end.reason;
    result.ttft_s = absl::ToDoubleSeconds(active.first_token - start_);
    const auto further = static_cast<double>(result.tokens.size()) - 1;
    if (further > 0) {
      result.tpot_s =
          absl::ToDoubleSeconds(active.last_token - active.first_token) /
          further;
    }
    done_(std::move(result));
    active_.erase(id);
  }

 private:
  struct Active {
    GenerationResult result;
    std::unique_ptr<TextStream> text;  // null without a tokenizer
    absl::Time first_token, last_token;
  };

  Active& Find(int64_t id) {
    const auto [it, is_new] = active_.try_emplace(id);
    if (is_new) {
      const PreparedPrompt& prompt = prompts_[static_cast<size_t>(id)];
      it->second.result.index = id;
      it->second.result.id = prompt.id;
      it->second.result.prompt_tokens =
          static_cast<int64_t>(prompt.request.prompt.size());
      if (tokenizer_ != nullptr) {
        it->second.text =
            std::make_unique<TextStream>(*tokenizer_, prompt.stops);
      }
    }
    return it->second;
  }

  void Emit(Active& active, const std::string& text) {
    active.result.text += text;
    if (stream_ != nullptr) stream_->Write(text);
  }

  const std::vector<PreparedPrompt>& prompts_;
  const Tokenizer* const tokenizer_;
  Output* const stream_;  // null: nothing is streamed
  const std::function<void(GenerationResult)> done_;
  absl::Time start_;
  std::map<int64_t, Active> active_;
};

// Brings finished results to rank 0 and prints them there in input order.
class ResultFunnel : public ResultCollector {
 public:
  ResultFunnel(Transport& transport, const JobOptions& options, Output& output)
      : transport_(transport),
        options_(options),
        output_(output),
        printer_([&output](const std::string& text) { output.Write(text); }) {}

  void Add(int64_t index, const std::string& text) {
    pending_ += EncodeResult(index, text);
  }

  bool has_output() const override { return !pending_.empty(); }

  absl::Status Collect() override {
    PORTOLAN_ASSIGN_OR_RETURN(
        const std::vector<std::string> texts,
        GatherToRoot(transport_, pending_,
                     absl::Seconds(options_.step_timeout_s)));
    pending_.clear();
    for (const std::string& text : texts) printer_.AddEncoded(text);
    return output_.status();
  }

  // Whether all results have come, on rank 0. Errors: kInternal.
  absl::Status CheckComplete(const std::vector<PreparedPrompt>& prompts) const {
    const auto printed = static_cast<size_t>(printer_.printed());
    if (printed == prompts.size() || transport_.rank() != Rank{0}) {
      return absl::OkStatus();
    }
    return absl::InternalError(
        absl::StrCat("only ", printed, " of ", prompts.size(),
                     " results were printed: that of prompt \"",
                     prompts[printed].id, "\" did not come"));
  }

 private:
  Transport& transport_;
  const JobOptions& options_;
  Output& output_;
  std::string pending_;
  InOrderPrinter printer_;
};

std::string FormatText(const GenerationResult& result) {
  return absl::StrCat("== ", result.id, "\n", result.text, "\n");
}

// The whole of one rank's run.
absl::Status RunRank(const GenerateOptions& options, const Model& model,
                     const std::vector<PreparedPrompt>& prompts,
                     Transport& transport) {
  const bool stream =
      prompts.size() == 1 && !options.jsonl && transport.rank() == Rank{0};
  PORTOLAN_RETURN_IF_ERROR(AgreeOnJob(options, model, prompts, transport));
  Output output;
  ResultFunnel funnel(transport, options.job, output);
  ResultSink sink(prompts, model.tokenizer.get(), stream ? &output : nullptr,
                  [&](const GenerationResult& result) {
                    if (stream) return funnel.Add(result.index, "\n");
                    funnel.Add(result.index, options.jsonl
                                                 ? ToJson(result) + "\n"
                                                 : FormatText(result));
                  });
  PORTOLAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<RankRuntime> runtime,
      RankRuntime::Create(options.job, model, transport, sink));
  ListFeed feed(prompts, transport);
  StepLoop loop(runtime->exchange(), runtime->engine(), feed, &funnel,
                runtime->observer(), runtime->profile());
  const absl::Time start = absl::Now();
  sink.Start(start);
  PORTOLAN_RETURN_IF_ERROR(loop.Run());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  PORTOLAN_RETURN_IF_ERROR(
      AgreeOnStatus(transport, funnel.CheckComplete(prompts), kStartTimeout));
  PORTOLAN_RETURN_IF_ERROR(runtime->SaveHistory());
  PORTOLAN_RETURN_IF_ERROR(runtime->SaveProfile());
  if (options.stats_file.empty()) return absl::OkStatus();
  return WriteStats(options.stats_file, *runtime, {loop.num_steps(), seconds},
                    transport);
}

absl::StatusOr<std::vector<Prompt>> CollectPrompts(
    const GenerateOptions& options) {
  std::vector<NamedFile> written = options.job.WrittenFiles();
  written.push_back({"--stats", options.stats_file});
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite(written, options.job.ReadFiles()));
  if (!options.prompts_file.empty()) return ReadPrompts(options.prompts_file);
  Prompt prompt;
  prompt.id = "0";
  prompt.where = "--prompt";
  prompt.text = *options.prompt;
  return std::vector<Prompt>{prompt};
}

absl::Status RunGenerate(GenerateOptions options) {
  // Equal prompts without a seed of their own sample equally on every rank.
  if (!options.wishes.seed.has_value()) options.wishes.seed = 0;
  options.job.input_files.push_back({"--prompts", options.prompts_file});
  const absl::StatusOr<std::vector<Prompt>> prompts = CollectPrompts(options);
  PORTOLAN_RETURN_IF_ERROR(OncePerHost(prompts.status()));
  return RunJob(
      options.job,
      [&](const Model& model, const RunWorld& run_world) -> absl::Status {
        PORTOLAN_ASSIGN_OR_RETURN(const std::vector<PreparedPrompt> prepared,
                                  PrepareAll(*prompts, options, model));
        return run_world([&](Transport& transport) {
          return RunRank(options, model, prepared, transport);
        });
      });
}

}  // namespace

void AddGenerateCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate", "Generate text for one prompt or a file of them");
  AddJobOptions(*command, options->job);
  CLI::Option_group* input =
      command->add_option_group("input", "What to continue");
  AddFlag(*input, "--prompt", options->prompt, "One prompt");
  AddFlag(*input, "--prompts", options->prompts_file,
          "JSONL file: {\"id\",\"prompt\", sampling fields} a line");
  input->require_option(1);
  AddSamplingOptions(*command, options->wishes);
  AddSeedFlag(
      *command, [options](uint64_t seed) { options->wishes.seed = seed; },
      "Seed of every prompt without one of its own (default: 0)");
  AddSetter<std::string>(
      *command, "--format",
      [options](const std::string& format) {
        options->jsonl = format == "jsonl";
      },
      "text (default) or jsonl, one object a prompt in input order")
      ->check(CLI::IsMember({"text", "jsonl"}));
  AddFlag(*command, "--stats", options->stats_file,
          "Write a JSON summary of the run to this file");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunGenerate(*options)); });
}

}  // namespace portolan

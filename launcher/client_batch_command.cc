// submit: one request, or a batch of them.

#include <cstdio>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "clients/cc/batch_run.h"
#include "launcher/client_commands.h"
#include "launcher/client_flags.h"
#include "launcher/client_json.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/output_files.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct SubmitFlags {
  ClientFlags client;
  RequestFlags request;
  BatchOptions batch;
  bool json = false;
};

absl::Status SubmitOne(const SubmitFlags& flags, Client& client) {
  PORTOLAN_ASSIGN_OR_RETURN(const v1::GenerateRequest request,
                            MakeRequest(flags.request));
  PORTOLAN_ASSIGN_OR_RETURN(const v1::SubmitResponse response,
                            client.Submit(request));
  std::printf("%s\n", flags.json ? ToJson(response).c_str()
                                 : response.request_id().c_str());
  return absl::OkStatus();
}

absl::Status SubmitBatch(const SubmitFlags& flags, Client& client) {
  PORTOLAN_RETURN_IF_ERROR(CheckCanWrite({{"--output", flags.batch.output}},
                                         {{"--batch", flags.batch.input}}));
  Progress progress("Requests done", /*silent=*/false);
  const absl::StatusOr<BatchSummary> summary =
      RunBatch(client, flags.batch, [&progress](const BatchSummary& now) {
        progress.Count(now.skipped + now.done + now.failed, now.total);
      });
  if (!summary.ok()) {
    const bool unread = absl::IsInvalidArgument(summary.status()) ||
                        absl::IsNotFound(summary.status());
    return absl::Status(
        summary.status().code(),
        absl::StrCat(summary.status().message(),
                     unread ? "" : "; the same command again goes on here"));
  }
  std::fprintf(stderr, "%lld requests: %lld done, %lld failed, %lld before\n",
               static_cast<long long>(summary->total),
               static_cast<long long>(summary->done),
               static_cast<long long>(summary->failed),
               static_cast<long long>(summary->skipped));
  if (summary->failed == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(summary->failed, " of ", summary->total,
                   " requests failed; their results say why"));
}

}  // namespace

void AddSubmitCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code) {
  auto flags = std::make_shared<SubmitFlags>();
  CLI::App* command = app.add_subcommand(
      "submit",
      "Hand over a request, which then completes whatever dies, and print its "
      "id; or a batch, and write the results");
  AddClientFlags(*command, flags->client);
  AddRequestFlags(*command, flags->request);
  CLI::Option* batch = AddFlag(
      *command, "--batch", flags->batch.input,
      "JSONL file of requests in OpenAI's batch form, - for standard input");
  batch->excludes(command->get_option("--prompt"));
  AddFlag(*command, "--output", flags->batch.output,
          "File of a batch's results (default: standard output); run "
          "again with the same file to go on")
      ->needs(batch);
  AddFlag(*command, "--window", flags->batch.window,
          "Requests of a batch in work at a time")
      ->needs(batch)
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  AddFlag(*command, "--key-prefix", flags->batch.key_prefix,
          "Put before each custom_id to make its idempotency key")
      ->needs(batch);
  AddSwitch(*command, "--json", flags->json, "Print JSON");
  command->callback([command, flags, &interruption, &exit_code] {
    if (command->count("--prompt") + command->count("--batch") == 0) {
      throw CLI::RequiredError("--prompt or --batch");
    }
    const absl::StatusOr<std::unique_ptr<Client>> client =
        MakeClient(flags->client, interruption);
    exit_code =
        Report(!client.ok()                 ? client.status()
               : flags->batch.input.empty() ? SubmitOne(*flags, **client)
                                            : SubmitBatch(*flags, **client));
  });
}

}  // namespace portolan

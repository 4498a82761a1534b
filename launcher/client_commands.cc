// The commands that stream: generate and watch.

#include "launcher/client_commands.h"

#include <cstdio>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cc/transcript.h"
#include "launcher/client_flags.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct GenerateFlags {
  ClientFlags client;
  RequestFlags request;
  bool json = false;
};

struct WatchFlags {
  ClientFlags client;
  std::string request_id;
  uint32_t from = 0;
  double timeout_s = 0;
  bool json = false;
};

absl::Time Deadline(double timeout_s) {
  return timeout_s > 0 ? absl::Now() + absl::Seconds(timeout_s)
                       : absl::InfiniteFuture();
}

// Prints text as it comes, unless only the JSON at the end is wanted.
class Printer {
 public:
  explicit Printer(bool json) : json_(json) {}

  void Take(const v1::GenerateResponse& response) {
    seen_ += static_cast<uint32_t>(response.token_ids_size());
    if (json_) return;
    Print(response.text());
    if (response.has_finish()) Print(response.finish().text_tail());
    std::fflush(stdout);
  }

  // After the last message.
  absl::Status Finish(const absl::StatusOr<Transcript>& transcript) {
    if (!json_ && printed_) std::fputc('\n', stdout);
    PORTOLAN_RETURN_IF_ERROR(transcript.status());
    if (json_) std::printf("%s\n", ToJson(*transcript).c_str());
    return transcript->Outcome();
  }

  uint32_t seen() const { return seen_; }

 private:
  void Print(const std::string& text) {
    printed_ = printed_ || !text.empty();
    std::fwrite(text.data(), 1, text.size(), stdout);
  }

  const bool json_;
  bool printed_ = false;
  uint32_t seen_ = 0;
};

absl::Status GenerateRequested(const GenerateFlags& flags,
                               Interruption& interruption) {
  PORTOLAN_ASSIGN_OR_RETURN(const v1::GenerateRequest request,
                            MakeRequest(flags.request));
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                            MakeClient(flags.client, interruption));
  Printer printer(flags.json);
  return printer.Finish(client->Generate(
      request, Deadline(flags.request.timeout_s),
      [&printer](const v1::GenerateResponse& r) { printer.Take(r); }));
}

absl::Status WatchRequested(const WatchFlags& flags,
                            Interruption& interruption) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                            MakeClient(flags.client, interruption));
  Printer printer(flags.json);
  const absl::StatusOr<Transcript> transcript = client->Watch(
      flags.request_id, flags.from, Deadline(flags.timeout_s),
      [&printer](const v1::GenerateResponse& r) { printer.Take(r); });
  const absl::Status status = printer.Finish(transcript);
  if (!transcript.ok() && !absl::IsNotFound(status)) {
    return absl::Status(
        status.code(),
        absl::StrCat(status.message(), "; go on with: portolan-client watch ",
                     flags.request_id, " --from ",
                     flags.from + printer.seen()));
  }
  return status;
}

}  // namespace

void AddGenerateRequestCommand(CLI::App& app, Interruption& interruption,
                               int& exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand(
      "generate", "Generate and print the text as it comes; Ctrl-C cancels");
  AddClientFlags(*command, flags->client);
  AddRequestFlags(*command, flags->request);
  command->get_option("--prompt")->required();
  AddSwitch(*command, "--json", flags->json,
            "Print one JSON object at the end instead of the text");
  command->callback([flags, &interruption, &exit_code] {
    exit_code = Report(GenerateRequested(*flags, interruption));
  });
}

void AddWatchCommand(CLI::App& app, Interruption& interruption,
                     int& exit_code) {
  auto flags = std::make_shared<WatchFlags>();
  CLI::App* command = app.add_subcommand(
      "watch",
      "Follow a request to its end; comes back by itself when the coordinator "
      "was away. Ctrl-C leaves the request alone");
  AddClientFlags(*command, flags->client);
  command->add_option("id", flags->request_id, "The request's id")->required();
  AddFlag(*command, "--from", flags->from,
          "Number of tokens that you have already");
  AddFlag(*command, "--timeout", flags->timeout_s,
          "Seconds to watch (default: to the end)")
      ->check(NumberRange(0.0, 1e9));
  AddSwitch(*command, "--json", flags->json,
            "Print one JSON object at the end instead of the text");
  command->callback([flags, &interruption, &exit_code] {
    exit_code = Report(WatchRequested(*flags, interruption));
  });
}

}  // namespace portolan

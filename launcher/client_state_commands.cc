// The commands that ask for, or change, what is known: get, list, cancel,
// health, stats.

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "clients/cc/transcript.h"
#include "launcher/client_commands.h"
#include "launcher/client_flags.h"
#include "launcher/client_json.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

struct StateFlags {
  ClientFlags client;
  bool json = false;
  std::vector<std::string> ids;
  std::vector<std::string> states;
  uint32_t limit = 100;
  std::string service;
};

using Action = absl::Status (*)(const StateFlags&, Client&);

std::string TimeText(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ",
                          absl::FromUnixSeconds(time.seconds()),
                          absl::UTCTimeZone());
}

void PrintRow(const v1::RequestInfo& info) {
  std::printf("%-26s %-9s %7u  %s  %s\n", info.request_id().c_str(),
              StateText(info.state()).c_str(), info.num_tokens(),
              TimeText(info.created()).c_str(), info.custom_id().c_str());
}

void PrintWhole(const v1::RequestInfo& info) {
  std::printf("request    %s\nstate      %s\nmodel      %s\ncreated    %s\n",
              info.request_id().c_str(), StateText(info.state()).c_str(),
              info.model().c_str(), TimeText(info.created()).c_str());
  if (info.has_ended()) {
    std::printf("ended      %s\n", TimeText(info.ended()).c_str());
  }
  if (info.state() == v1::REQUEST_STATE_QUEUED) {
    std::printf("queue      %u ahead\n", info.queue_position());
  }
  std::printf("attempt    %u\nseed       %llu\ntokens     %u\n", info.attempt(),
              static_cast<unsigned long long>(info.seed()), info.num_tokens());
  if (info.has_finish()) {
    std::printf("finish     %s\n",
                std::string(FinishReasonText(info.finish().reason())).c_str());
  }
  if (info.finish().has_error()) {
    std::printf("error      %s\n", info.finish().error().message().c_str());
  }
  if (!info.text().empty()) std::printf("\n%s\n", info.text().c_str());
}

absl::Status Get(const StateFlags& flags, Client& client) {
  for (const std::string& id : flags.ids) {
    PORTOLAN_ASSIGN_OR_RETURN(const v1::RequestInfo info,
                              client.Get(id, /*include_output=*/true));
    if (flags.json) {
      std::printf("%s\n", ToJson(info).c_str());
    } else {
      PrintWhole(info);
    }
  }
  return absl::OkStatus();
}

absl::Status Cancel(const StateFlags& flags, Client& client) {
  for (const std::string& id : flags.ids) {
    PORTOLAN_ASSIGN_OR_RETURN(const v1::RequestInfo info, client.Cancel(id));
    if (flags.json) {
      std::printf("%s\n", ToJson(info).c_str());
    } else {
      std::printf("%s %s\n", id.c_str(), StateText(info.state()).c_str());
    }
  }
  return absl::OkStatus();
}

v1::RequestState ParseState(const std::string& text) {
  for (int state = v1::REQUEST_STATE_QUEUED;
       state <= v1::REQUEST_STATE_CANCELLED; ++state) {
    if (StateText(static_cast<v1::RequestState>(state)) == text) {
      return static_cast<v1::RequestState>(state);
    }
  }
  return v1::REQUEST_STATE_UNSPECIFIED;  // excluded by the flag's check
}

absl::Status List(const StateFlags& flags, Client& client) {
  constexpr uint32_t kPage = 1000;
  v1::ListRequest request;
  for (const std::string& state : flags.states) {
    request.add_states(ParseState(state));
  }
  if (!flags.json) {
    std::printf("%-26s %-9s %7s  %-20s  %s\n", "REQUEST", "STATE", "TOKENS",
                "CREATED", "ID");
  }
  uint32_t left = flags.limit;
  do {
    request.set_page_size(std::min(left, kPage));
    PORTOLAN_ASSIGN_OR_RETURN(const v1::ListResponse page,
                              client.List(request));
    for (const v1::RequestInfo& info : page.requests()) {
      if (flags.json) {
        std::printf("%s\n", ToJson(info).c_str());
      } else {
        PrintRow(info);
      }
    }
    left -= std::min(left, static_cast<uint32_t>(page.requests_size()));
    request.set_page_token(page.next_page_token());
  } while (left > 0 && !request.page_token().empty());
  return absl::OkStatus();
}

absl::Status Health(const StateFlags& flags, Client& client) {
  using grpc::health::v1::HealthCheckResponse;
  PORTOLAN_ASSIGN_OR_RETURN(const auto status, client.Health(flags.service));
  const std::string text = HealthCheckResponse::ServingStatus_Name(status);
  std::printf(flags.json ? "{\"status\": \"%s\"}\n" : "%s\n", text.c_str());
  if (status == HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the service is ", text, ": it loads or drains"));
}

void PrintStats(const v1::Stats& stats) {
  std::printf("%s, up %.0f s%s\n", stats.version().c_str(), stats.uptime_s(),
              stats.draining() ? ", draining" : "");
  const auto number = [](uint64_t value) {
    return static_cast<unsigned long long>(value);
  };
  std::printf(
      "requests  %llu queued, %llu running, %llu done, %llu failed, %llu "
      "cancelled, %llu rejected\n",
      number(stats.queued()), number(stats.running()), number(stats.done()),
      number(stats.failed()), number(stats.cancelled()),
      number(stats.rejected()));
  std::printf("tokens    %llu, now %.1f a second\n", number(stats.tokens()),
              stats.tokens_per_s());
  for (const v1::ModelStats& model : stats.models()) {
    std::printf("model     %s, %llu expert maps, of use %llu times\n",
                model.name().c_str(), number(model.expert_maps()),
                number(model.expert_map_hits()));
  }
  for (const v1::RankStats& rank : stats.ranks()) {
    std::printf(
        "rank      %s %u on %s: %u running, room for %u and %llu KV tokens, "
        "%llu tokens, silent %.1f s%s\n",
        rank.job().c_str(), rank.rank(), rank.host().c_str(), rank.running(),
        rank.free_sequences(), number(rank.free_kv_tokens()),
        number(rank.tokens()), rank.silent_s(),
        rank.draining() ? ", draining" : "");
    std::printf(
        "          its experts: %llu hits, %llu late, %llu misses, waited %.1f "
        "s, %s of memory\n",
        number(rank.expert_hits()), number(rank.expert_late()),
        number(rank.expert_misses()), rank.expert_stall_s(),
        FormatBytes(rank.expert_memory_bytes()).c_str());
  }
}

absl::Status GetStats(const StateFlags& flags, Client& client) {
  PORTOLAN_ASSIGN_OR_RETURN(const v1::Stats stats, client.GetStats());
  if (flags.json) {
    std::printf("%s\n", ToJson(stats).c_str());
  } else {
    PrintStats(stats);
  }
  return absl::OkStatus();
}

CLI::App* AddCommand(CLI::App& app, const char* name, const char* help,
                     std::shared_ptr<StateFlags> flags, Action action,
                     Interruption& interruption, int& exit_code) {
  CLI::App* command = app.add_subcommand(name, help);
  AddClientFlags(*command, flags->client);
  AddSwitch(*command, "--json", flags->json, "Print JSON, one object a line");
  command->callback([flags, action, &interruption, &exit_code] {
    const absl::StatusOr<std::unique_ptr<Client>> client =
        MakeClient(flags->client, interruption);
    exit_code =
        Report(client.ok() ? action(*flags, **client) : client.status());
  });
  return command;
}

}  // namespace

void AddGetCommand(CLI::App& app, Interruption& interruption, int& exit_code) {
  auto flags = std::make_shared<StateFlags>();
  AddCommand(app, "get", "Show a request and what it has generated so far",
             flags, &Get, interruption, exit_code)
      ->add_option("id", flags->ids, "Ids of requests")
      ->required();
}

void AddCancelCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code) {
  auto flags = std::make_shared<StateFlags>();
  AddCommand(app, "cancel", "End requests; ended ones are left alone", flags,
             &Cancel, interruption, exit_code)
      ->add_option("id", flags->ids, "Ids of requests")
      ->required();
}

void AddListCommand(CLI::App& app, Interruption& interruption, int& exit_code) {
  auto flags = std::make_shared<StateFlags>();
  CLI::App* command =
      AddCommand(app, "list", "List your requests, newest first", flags, &List,
                 interruption, exit_code);
  AddFlag(*command, "--state", flags->states,
          "Only those: queued, running, done, failed, cancelled")
      ->check(
          CLI::IsMember({"queued", "running", "done", "failed", "cancelled"}));
  AddFlag(*command, "--limit", flags->limit, "At most so many")
      ->check(CLI::Range(1, 1 << 30));
}

void AddHealthCommand(CLI::App& app, Interruption& interruption,
                      int& exit_code) {
  auto flags = std::make_shared<StateFlags>();
  CLI::App* command =
      AddCommand(app, "health", "Exit with 0 if the service takes requests",
                 flags, &Health, interruption, exit_code);
  AddFlag(*command, "--service", flags->service,
          "Full name of one service (default: the server)");
}

void AddStatsCommand(CLI::App& app, Interruption& interruption,
                     int& exit_code) {
  AddCommand(app, "stats", "Show what the coordinator and its ranks do",
             std::make_shared<StateFlags>(), &GetStats, interruption,
             exit_code);
}

}  // namespace portolan

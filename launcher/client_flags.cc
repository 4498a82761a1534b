#include "launcher/client_flags.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "launcher/flags.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

void AddSamplingFields(CLI::App& command, v1::SamplingParams& params) {
  AddSetter<uint32_t>(
      command, "--max-tokens",
      [&params](uint32_t v) { params.set_max_tokens(v); },
      "Tokens to generate (default: the service's)");
  AddSetter<double>(
      command, "--temperature",
      [&params](double v) { params.set_temperature(v); },
      "0 takes the likeliest token");
  AddSetter<uint32_t>(
      command, "--top-k", [&params](uint32_t v) { params.set_top_k(v); },
      "Keep the k likeliest tokens; 0: all");
  AddSetter<double>(
      command, "--top-p", [&params](double v) { params.set_top_p(v); },
      "Keep the likeliest tokens that make up this probability");
  AddSetter<double>(
      command, "--min-p", [&params](double v) { params.set_min_p(v); },
      "Drop tokens less likely than this share of the likeliest");
  AddSeedFlag(
      command, [&params](uint64_t v) { params.set_seed(v); },
      "Seed of the sampling (default: drawn by the service)");
  AddStopFlag(command, [&params](const std::vector<std::string>& stops) {
    for (const std::string& stop : stops) params.add_stop(stop);
  });
}

void AddPenaltyFields(CLI::App& command, v1::SamplingParams& params) {
  AddSetter<double>(
      command, "--repetition-penalty",
      [&params](double v) { params.set_repetition_penalty(v); },
      "Above 1 makes tokens that were there less likely");
  AddSetter<double>(
      command, "--presence-penalty",
      [&params](double v) { params.set_presence_penalty(v); },
      "Taken from the logits of tokens that were there");
  AddSetter<double>(
      command, "--frequency-penalty",
      [&params](double v) { params.set_frequency_penalty(v); },
      "Taken from the logits of a token each time it was there");
  AddSwitchFunction(
      command, "--ignore-eos",
      [&params](int64_t) { params.set_ignore_eos(true); },
      "Go on past the end-of-sequence token");
}

bool IsUtf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();  // which insists on it
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
  return true;
}

}  // namespace

void AddConnectionFlags(CLI::App& command, ConnectionOptions& options) {
  AddFlag(command, "--coordinator", options.coordinator,
          "HOST:PORT of the coordinator");
  AddSwitch(command, "--tls", options.tls,
            "Use TLS with the system's authorities");
  AddFlag(command, "--tls-ca", options.tls_ca,
          "Use TLS; the certificate (PEM) of the service's authority");
  AddFlag(command, "--tls-cert", options.tls_cert,
          "Own certificate (PEM), where the service wants one");
  AddFlag(command, "--tls-key", options.tls_key, "The key of --tls-cert");
  AddFlag(command, "--tls-server-name", options.tls_server_name,
          "Name in the service's certificate, if it is not the host's");
  AddFlag(command, "--token-file", options.token_file,
          "File whose first line is the token that the service knows you by");
  AddSwitch(command, "--insecure", options.insecure,
            "Send the token in the clear to another host");
}

void AddClientFlags(CLI::App& command, ClientFlags& flags) {
  AddConnectionFlags(command, flags.connection);
  AddFlag(command, "--retry-for", flags.retry_for_s,
          "Seconds to go on trying while the service is busy or gone")
      ->check(NumberRange(0.0, 1e9));
  AddFlag(command, "--wait", flags.wait_s,
          "Seconds to wait for a coordinator that does not answer at first")
      ->check(NumberRange(0.0, 1e9));
}

void AddRequestFlags(CLI::App& command, RequestFlags& flags) {
  AddFlag(command, "--prompt", flags.prompt,
          "The prompt; - reads standard input");
  AddSetter<std::string>(
      command, "--model",
      [&flags](const std::string& name) { flags.request.set_model(name); },
      "Name of the model, where the service has several");
  AddSetter<std::string>(
      command, "--id",
      [&flags](const std::string& id) { flags.request.set_custom_id(id); },
      "Your own name for the request");
  AddSetter<std::string>(
      command, "--key",
      [&flags](const std::string& key) {
        flags.request.set_idempotency_key(key);
      },
      "Idempotency key: the same key is the same request, however often it is "
      "sent");
  AddFlag(command, "--timeout", flags.timeout_s,
          "Seconds after which the request ends (default: none)")
      ->check(NumberRange(0.0, 1e9));
  AddSamplingFields(command, *flags.request.mutable_params());
  AddPenaltyFields(command, *flags.request.mutable_params());
}

absl::StatusOr<std::unique_ptr<Client>> MakeClient(const ClientFlags& flags,
                                                   Interruption& interruption) {
  PORTOLAN_ASSIGN_OR_RETURN(Connection connection,
                            Connection::Open(flags.connection));
  ClientOptions options;
  // Well below the time that a coordinator waits for its clients (--reattach).
  options.backoff.longest = absl::Seconds(2);
  options.backoff.give_up_after =
      absl::Seconds(std::max(flags.retry_for_s, flags.wait_s));
  options.wait_for_server = absl::Seconds(flags.wait_s);
  options.on_retry = [](const absl::Status& status, absl::Duration delay) {
    std::fprintf(stderr, "portolan-client: %s; again in %.1f s\n",
                 std::string(status.message()).c_str(),
                 absl::ToDoubleSeconds(delay));
  };
  return std::make_unique<Client>(std::move(connection), std::move(options),
                                  interruption);
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const RequestFlags& flags) {
  v1::GenerateRequest request = flags.request;
  request.set_text(flags.prompt);
  if (flags.prompt == "-") {
    request.set_text(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  }
  if (request.text().empty()) {
    return absl::InvalidArgumentError("--prompt: the prompt is empty");
  }
  if (!IsUtf8(request.text())) {
    return absl::InvalidArgumentError(
        "--prompt: the prompt is not valid UTF-8; convert it first (iconv)");
  }
  if (flags.timeout_s > 0) {
    const auto whole = static_cast<int64_t>(flags.timeout_s);
    request.mutable_timeout()->set_seconds(whole);
    request.mutable_timeout()->set_nanos(static_cast<int32_t>(
        (flags.timeout_s - static_cast<double>(whole)) * 1e9));
  }
  return request;
}

}  // namespace portolan

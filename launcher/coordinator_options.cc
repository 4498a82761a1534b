#include "launcher/coordinator_options.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "experts/history.h"
#include "launcher/flags.h"
#include "launcher/version.h"

namespace portolan {
namespace {

void AddLimits(CLI::App& command, CoordinatorOptions& options) {
  QueueOptions& queue = options.hub.queue;
  AddFlag(command, "--max-queued", queue.max_queued_requests,
          "Requests that may wait; more are refused");
  AddFlag(command, "--max-queued-tokens", queue.max_queued_tokens,
          "Prompt and output tokens of all that wait");
  AddFlag(command, "--client-requests", queue.max_client_requests,
          "Unfinished requests of one client; 0: no quota");
  AddFlag(command, "--client-tokens", queue.max_client_tokens,
          "Prompt and output tokens of one client's unfinished requests; 0: no "
          "quota");
  AddDurationFlag(
      command, "--max-queue-wait", queue.max_queue_wait,
      "A live call whose first token would come later, for it waits for a rank "
      "and then starts as slowly as others of late, is refused; one "
      "that finds room at once is taken");
  AddFlag(command, "--max-prompt-tokens", options.hub.limits.max_prompt_tokens,
          "Longest prompt");
  AddFlag(command, "--max-message-bytes", options.max_message_bytes,
          "Longest message of a client")
      ->check(CLI::Range(1024, INT32_MAX));
  AddFlag(command, "--client-streams", options.hub.max_client_streams,
          "Calls of Generate and Watch that one client may have open; 0: no "
          "limit")
      ->check(CLI::Range(0, INT32_MAX));
  AddFlag(command, "--shared-history-capacity", options.expert_maps.max_rows,
          "Expert maps of tokens, and of sequences, that the ranks of a model "
          "share")
      ->check(CLI::Range(size_t{1}, size_t{kMaxHistoryCapacity}));
}

void AddSecurity(CLI::App& command, SecurityOptions& security) {
  AddFlag(command, "--tls-cert", security.tls_cert,
          "PEM file of the server's certificate chain");
  AddFlag(command, "--tls-key", security.tls_key, "PEM file of its key");
  AddFlag(command, "--tls-client-ca", security.tls_client_ca,
          "PEM file of the authority whose certificates let ranks in");
  AddFlag(command, "--worker-subject", security.worker_subject,
          "Subjects of such certificates that let ranks in, * for any text, "
          "e.g. '*CN=rank-*'; others are clients' only (default: all)");
  AddFlag(command, "--token-file", security.token_file,
          "Who may call: lines of NAME ROLE TOKEN, where ROLE is client, "
          "worker or admin");
  AddSwitch(command, "--insecure", security.insecure,
            "Listen beyond this machine without TLS and tokens");
}

}  // namespace

void AddCoordinatorOptions(CLI::App& command, CoordinatorOptions& options) {
  options.hub.version = VersionAndCommit();
  AddFlag(command, "--listen", options.listen,
          "HOST:PORT to serve; port 0 takes a free one, which "
          "DATA_DIR/endpoint.json tells");
  AddFlag(command, "--data-dir", options.data_dir,
          "Directory of what is kept: requests, tokens, history");
  AddFlag(command, "--http", options.http,
          "HOST:PORT of /metrics (Prometheus), /healthz and a status page");
  AddFlag(command, "--log-file", options.log_file,
          "Append events, one JSON object a line, to this file (default: "
          "stderr)");
  AddSecurity(command, options.security);
  AddLimits(command, options);
  QueueOptions& queue = options.hub.queue;
  AddDurationFlag(command, "--reattach", queue.reattach,
                  "How long requests wait for a rank, or a client, whose "
                  "stream broke");
  AddDurationFlag(command, "--rank-timeout", queue.rank_timeout,
                  "Silence after which a rank is taken for lost");
  AddFlag(command, "--max-attempts", queue.max_attempts,
          "A request that is in work at so many deaths of its rank fails");
  AddDurationFlag(command, "--retention", options.hub.retention.age,
                  "How long ended requests are kept");
  AddBytesFlag(command, "--min-free-disk", options.store.min_free_bytes,
               "New requests are refused when the disk has less left");
  AddBytesFlag(command, "--retention-size", options.hub.retention.max_bytes,
               "Size of the database above which the oldest ended requests go");
}

absl::Status BrokenDatabase(const absl::Status& why) {
  return {why.code(),
          absl::StrCat("the database of --data-dir takes no writes, for good: ",
                       why.message(),
                       "; nothing that is kept is lost, start again when the "
                       "directory is sound")};
}

void AddGraceOption(CLI::App& command, absl::Duration& grace) {
  AddDurationFlag(command, "--grace", grace,
                  "How long running requests may go on after SIGTERM");
}

}  // namespace portolan

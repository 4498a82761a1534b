#pragma once

#include <string>

#include "CLI/App.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launcher/options.h"
#include "runtime/agent/control_stream.h"

namespace portolan {

// What `worker` and `serve` share: a job whose requests come from a
// coordinator.
struct ServiceOptions {
  JobOptions job;
  SamplingWishes wishes;   // of requests that do not say
  std::string job_name;    // empty: Slurm's job, else the model's name
  std::string model_name;  // empty: the directory's name
  absl::Duration grace = absl::Seconds(30);  // after SIGTERM
  std::string coordinator;                   // host:port
  bool tls = false;
  std::string tls_name;     // in the coordinator's certificate
  std::string tls_ca_file;  // empty: the system's roots
  std::string tls_cert_file;
  std::string tls_key_file;
  std::string token_file;

  // Fills in the names that were not given.
  void Complete();
  // Errors: kInvalidArgument naming the flag.
  absl::Status Validate() const;
};

void AddServiceOptions(CLI::App& command, ServiceOptions& options);
// Which coordinator, and what to show to it: of `worker` only.
void AddCoordinatorAddress(CLI::App& command, ServiceOptions& options);

// Reads the files that the flags name.
// Errors: kNotFound, kInvalidArgument naming flag and file.
absl::StatusOr<CoordinatorAddress> ReadAddress(const ServiceOptions& options);

}  // namespace portolan

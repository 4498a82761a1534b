#include "launcher/serve_options.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "launcher/coordinator_options.h"
#include "launcher/flags.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::StatusOr<std::string> ReadFileOf(const char* flag,
                                       const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat(flag, ": cannot read ", path));
  }
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A token alone, or that of a worker in the coordinator's own file, whose lines
// are NAME ROLE TOKEN.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return std::string();
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                            ReadFileOf("--token-file", path));
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string first, role, token;
    words >> first >> role >> token;
    if (first.empty() || first[0] == '#') continue;
    if (role.empty()) return first;
    if (role == "worker") return token;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--token-file: ", path,
      " has no token with the role worker, which ranks ", "need to attach"));
}

}  // namespace

void ServiceOptions::Complete() {
  std::error_code ignored;
  const std::filesystem::path dir =
      std::filesystem::weakly_canonical(job.model_dir, ignored);
  if (model_name.empty()) {
    model_name = dir.has_filename() ? dir.filename().string()
                                    : dir.parent_path().filename().string();
  }
  if (!job_name.empty()) return;
  const char* slurm_job = std::getenv("SLURM_JOB_ID");
  job_name =
      slurm_job == nullptr ? model_name : absl::StrCat("slurm-", slurm_job);
}

absl::Status ServiceOptions::Validate() const {
  if (tls_cert_file.empty() != tls_key_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key belong together");
  }
  if (job_name.empty() || job_name.size() > 128) {
    return absl::InvalidArgumentError("--job must have 1 to 128 bytes");
  }
  return absl::OkStatus();
}

void AddServiceOptions(CLI::App& command, ServiceOptions& options) {
  AddJobOptions(command, options.job);
  AddSamplingOptions(command, options.wishes);
  AddFlag(command, "--job", options.job_name,
          "Name of the job, the same when it is started again (default: "
          "Slurm's job, else the model's name)");
  AddFlag(command, "--model-name", options.model_name,
          "What clients call the model (default: its directory's name)");
  AddFlag(
      command, "--tls-ca", options.tls_ca_file,
      "Who signed the coordinator's certificate, for ranks that talk TLS to "
      "it (PEM; default: the system's authorities)");
  AddFlag(command, "--tls-name", options.tls_name,
          "Name in the coordinator's certificate, if it is not that of its "
          "address");
  AddGraceOption(command, options.grace);
}

void AddCoordinatorAddress(CLI::App& command, ServiceOptions& options) {
  AddFlag(command, "--coordinator", options.coordinator,
          "HOST:PORT of the coordinator")
      ->required();
  AddSwitch(command, "--tls", options.tls,
            "Talk TLS to the coordinator; the other flags of TLS "
            "imply it");
  AddFlag(command, "--tls-cert", options.tls_cert_file,
          "This job's own certificate (PEM), with --tls-key");
  AddFlag(command, "--tls-key", options.tls_key_file,
          "The key of --tls-cert (PEM)");
  AddFlag(command, "--token-file", options.token_file,
          "File that holds the token to show to the coordinator, or the "
          "coordinator's own token file");
}

absl::StatusOr<CoordinatorAddress> ReadAddress(const ServiceOptions& options) {
  CoordinatorAddress address;
  address.address = options.coordinator;
  address.tls = options.tls || !options.tls_ca_file.empty() ||
                !options.tls_cert_file.empty() || !options.tls_name.empty();
  address.tls_name = options.tls_name;
  PORTOLAN_ASSIGN_OR_RETURN(address.ca_pem,
                            ReadFileOf("--tls-ca", options.tls_ca_file));
  PORTOLAN_ASSIGN_OR_RETURN(address.cert_pem,
                            ReadFileOf("--tls-cert", options.tls_cert_file));
  PORTOLAN_ASSIGN_OR_RETURN(address.key_pem,
                            ReadFileOf("--tls-key", options.tls_key_file));
  PORTOLAN_ASSIGN_OR_RETURN(address.token, ReadToken(options.token_file));
  return address;
}

}  // namespace portolan

#include "clients/cc/batch_run.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cc/batch.h"
#include "runtime/base/mutex.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::StatusOr<std::vector<BatchLine>> ReadBatch(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path, std::ios::binary);
    if (!file) {
      return absl::NotFoundError(absl::StrCat("--batch: cannot open ", path));
    }
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::vector<BatchLine> lines;
  std::unordered_set<std::string> ids;
  std::string text;
  for (int64_t number = 1; std::getline(in, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    absl::StatusOr<BatchLine> line = ParseBatchLine(text);
    if (line.ok() && !ids.insert(line->custom_id).second) {
      line = absl::InvalidArgumentError(
          absl::StrCat("custom_id \"", line->custom_id, "\" is there twice"));
    }
    if (!line.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ", line ", number, ": ", line.status().message()));
    }
    lines.push_back(*std::move(line));
  }
  return lines;
}

// Keeps the good results of an earlier run; returns their ids.
absl::StatusOr<std::set<std::string>> KeepGoodResults(const std::string& path) {
  std::set<std::string> ids;
  std::ifstream old(path, std::ios::binary);
  if (!old) return ids;
  const std::string fresh_path = absl::StrCat(path, ".new");
  std::ofstream fresh(fresh_path, std::ios::binary | std::ios::trunc);
  std::string line;
  while (std::getline(old, line)) {
    const std::optional<std::string> id = SucceededId(line);
    if (id.has_value() && ids.insert(*id).second) fresh << line << '\n';
  }
  fresh.close();
  if (!fresh || std::rename(fresh_path.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat(
        "--output: cannot write ", fresh_path, ": ", std::strerror(errno)));
  }
  return ids;
}

// Errors that would meet every other request, too.
bool EndsTheBatch(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsUnavailable(status) ||
         absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
}

class Run {
 public:
  Run(Client& client, const BatchOptions& options,
      const std::function<void(const BatchSummary&)>& on_progress,
      std::vector<BatchLine> lines)
      : client_(client),
        options_(options),
        on_progress_(on_progress),
        lines_(std::move(lines)) {}

  absl::StatusOr<BatchSummary> ToEnd() {
    PORTOLAN_RETURN_IF_ERROR(OpenOutput());
    {
      std::vector<std::jthread> workers;
      const size_t count =
          std::min<size_t>(static_cast<size_t>(options_.window), lines_.size());
      for (size_t i = 0; i < count; ++i)
        workers.emplace_back([this] { Work(); });
    }
    MutexLock lock(mu_);
    PORTOLAN_RETURN_IF_ERROR(fault_);
    return summary_;
  }

 private:
  absl::Status OpenOutput() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    summary_.total = static_cast<int64_t>(lines_.size());
    if (options_.output.empty()) return absl::OkStatus();
    PORTOLAN_ASSIGN_OR_RETURN(const std::set<std::string> good,
                              KeepGoodResults(options_.output));
    std::erase_if(lines_, [&good](const BatchLine& line) {
      return good.contains(line.custom_id);
    });
    summary_.skipped = summary_.total - static_cast<int64_t>(lines_.size());
    file_.open(options_.output, std::ios::binary | std::ios::app);
    if (!file_) {
      return absl::UnavailableError(
          absl::StrCat("--output: cannot write ", options_.output));
    }
    return absl::OkStatus();
  }

  const BatchLine* Next() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (!fault_.ok() || next_ == lines_.size()) return nullptr;
    return &lines_[next_++];
  }

  void Work() {
    while (const BatchLine* line = Next()) {
      std::string request_id;
      std::string result;
      const absl::Status status = Serve(*line, request_id, result);
      // Only a request that ended has told its id.
      if (request_id.empty() && EndsTheBatch(status)) return Fail(status);
      if (!status.ok()) {
        result = BatchError(line->custom_id, request_id, status);
      }
      Write(result, status.ok());
    }
  }

  absl::Status Serve(const BatchLine& line, std::string& request_id,
                     std::string& result) {
    PORTOLAN_RETURN_IF_ERROR(line.status);
    // A request that failed for good keeps its key: the next one has another.
    for (int attempt = 1;; ++attempt) {
      const std::string key =
          BatchKey(options_.key_prefix, line.custom_id, attempt);
      bool failed_before = false;
      const absl::Status status =
          ServeAs(key, line, request_id, result, failed_before);
      if (!failed_before) return status;
    }
  }

  // failed_before: the key is that of an earlier request, which has failed.
  absl::Status ServeAs(const std::string& key, const BatchLine& line,
                       std::string& request_id, std::string& result,
                       bool& failed_before) {
    v1::GenerateRequest request = line.request;
    request.set_idempotency_key(key);
    const absl::Time created = absl::Now();
    absl::StatusOr<v1::SubmitResponse> accepted = client_.Submit(request);
    if (absl::IsAlreadyExists(accepted.status())) {
      return absl::AlreadyExistsError(absl::StrCat(
          accepted.status().message(),
          "; custom_id is the idempotency key: give this batch another "
          "--key-prefix"));
    }
    PORTOLAN_RETURN_IF_ERROR(accepted.status());
    absl::StatusOr<Transcript> transcript = client_.Watch(
        accepted->request_id(), 0, absl::InfiniteFuture(), nullptr);
    PORTOLAN_RETURN_IF_ERROR(transcript.status());
    request_id = accepted->request_id();
    const absl::Status outcome = transcript->Outcome();
    failed_before = accepted->existed() && !outcome.ok();
    PORTOLAN_RETURN_IF_ERROR(outcome);
    result = BatchResult(line.custom_id, request.model(), created, *transcript);
    return absl::OkStatus();
  }

  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (fault_.ok()) fault_ = status;
  }

  void Write(const std::string& result, bool good) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    std::ostream& out = file_.is_open() ? file_ : std::cout;
    out << result << std::endl;
    if (!out && fault_.ok()) {
      fault_ =
          absl::UnavailableError("cannot write a result; is the disk full?");
    }
    ++(good ? summary_.done : summary_.failed);
    if (on_progress_) on_progress_(summary_);
  }

  Client& client_;
  const BatchOptions& options_;
  const std::function<void(const BatchSummary&)>& on_progress_;
  std::vector<BatchLine> lines_;  // constant once the workers run

  Mutex mu_;
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status fault_ ABSL_GUARDED_BY(mu_);
  BatchSummary summary_ ABSL_GUARDED_BY(mu_);
  std::ofstream file_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<BatchSummary> RunBatch(
    Client& client, const BatchOptions& options,
    const std::function<void(const BatchSummary&)>& on_progress) {
  PORTOLAN_ASSIGN_OR_RETURN(std::vector<BatchLine> lines,
                            ReadBatch(options.input));
  return Run(client, options, on_progress, std::move(lines)).ToEnd();
}

}  // namespace portolan

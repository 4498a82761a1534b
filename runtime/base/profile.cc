#include "runtime/base/profile.h"

#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr size_t kMaxDepth = 16;

int64_t SteadyNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

const char* ZoneName(Zone zone) {
  switch (zone) {
    case Zone::kStep:
      return "step";
    case Zone::kPlan:
      return "plan";
    case Zone::kStepRecord:
      return "step record";
    case Zone::kAttention:
      return "attention";
    case Zone::kQkv:
      return "q, k, v";
    case Zone::kHeads:
      return "heads";
    case Zone::kScores:
      return "scores";
    case Zone::kAttentionOutput:
      return "attention output";
    case Zone::kGate:
      return "gate";
    case Zone::kObserve:
      return "observe";
    case Zone::kDense:
      return "dense block";
    case Zone::kExchange:
      return "exchange";
    case Zone::kDispatch:
      return "dispatch";
    case Zone::kExperts:
      return "experts";
    case Zone::kExpertWait:
      return "wait for experts";
    case Zone::kGateUp:
      return "gate and up";
    case Zone::kDown:
      return "down";
    case Zone::kCombine:
      return "combine";
    case Zone::kLogits:
      return "logits";
    case Zone::kSampling:
      return "sampling";
  }
  return "?";
}

Profile::Profile(int64_t capacity) {
  events_.reserve(static_cast<size_t>(capacity));
  open_.reserve(kMaxDepth);
}

void Profile::Begin(Zone zone, int32_t layer) {
  PORTOLAN_CHECK(open_.size() < kMaxDepth);
  if (events_.size() == events_.capacity()) {
    open_.push_back(-1);
    ++num_dropped_;
    return;
  }
  const int32_t parent = open_.empty() ? -1 : open_.back();
  open_.push_back(static_cast<int32_t>(events_.size()));
  events_.push_back(
      {.begin_ns = SteadyNs(), .layer = layer, .parent = parent, .zone = zone});
}

void Profile::End() {
  PORTOLAN_CHECK(!open_.empty());
  const int32_t event = open_.back();
  open_.pop_back();
  if (event >= 0) events_[static_cast<size_t>(event)].end_ns = SteadyNs();
}

void Profile::Clear() {
  PORTOLAN_CHECK(open_.empty());
  events_.clear();
  num_dropped_ = 0;
}

std::array<Profile::Total, kNumZones> Profile::Totals() const {
  std::array<Total, kNumZones> totals;
  for (const Event& event : events_) {
    if (event.end_ns == 0) continue;
    const double seconds =
        static_cast<double>(event.end_ns - event.begin_ns) * 1e-9;
    Total& total = totals[static_cast<size_t>(event.zone)];
    ++total.count;
    total.seconds += seconds;
    total.self_seconds += seconds;
    if (event.parent < 0) continue;
    const Zone outer = events_[static_cast<size_t>(event.parent)].zone;
    totals[static_cast<size_t>(outer)].self_seconds -= seconds;
  }
  return totals;
}

std::string Profile::Notice() const {
  if (num_dropped_ == 0) return "";
  return absl::StrCat("the profile has room for ", events_.size(),
                      " zones; the ", num_dropped_,
                      " that came later are in no trace and in no figures");
}

absl::Status Profile::WriteTrace(const std::string& path, int rank) const {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("--profile: cannot write ", path));
  }
  std::fprintf(file,
               "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"dropped\":%lld},"
               "\"traceEvents\":[\n{\"name\":\"process_name\",\"ph\":\"M\","
               "\"pid\":%d,\"tid\":0,\"args\":{\"name\":\"rank %d\"}}",
               static_cast<long long>(num_dropped_), rank, rank);
  for (const Event& event : events_) {
    if (event.end_ns == 0) continue;
    std::fprintf(
        file,
        ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,"
        "\"dur\":%.3f",
        ZoneName(event.zone), rank, static_cast<double>(event.begin_ns) * 1e-3,
        static_cast<double>(event.end_ns - event.begin_ns) * 1e-3);
    if (event.layer >= 0) {
      std::fprintf(file, ",\"args\":{\"layer\":%d}", event.layer);
    }
    std::fputs("}", file);
  }
  std::fputs("\n]}\n", file);
  const bool failed = std::ferror(file) != 0;
  if (std::fclose(file) != 0 || failed) {
    return absl::UnavailableError(
        absl::StrCat("--profile: cannot write all of ", path));
  }
  return absl::OkStatus();
}

}  // namespace portolan

#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/coordinator/event_log.h"
#include "cluster/coordinator/rank_figures.h"
#include "cluster/coordinator/request_queue.h"
#include "cluster/coordinator/request_store.h"
#include "runtime/base/mutex.h"
#include "runtime/base/steady_now.h"

namespace portolan {

RankIdentity IdentityOf(const v1::Register& rank);

// What the coordinator tells the world about its work: Prometheus metrics with
// the stems and buckets of vLLM's (portolan_ for vllm:), and log lines.
//
// Thread-safe.
class Telemetry {
 public:
  // `log` may be null: no lines. `now`: a steady clock.
  explicit Telemetry(std::unique_ptr<EventLog> log,
                     std::function<absl::Time()> now = &SteadyNow);

  // `model`: one that is known, or "unknown".
  void Rejected(std::string_view client, std::string_view x_request_id,
                std::string_view model, const absl::Status& status);
  void Ended(const StoredRequest& request);
  void FirstToken(const StoredRequest& request, absl::Time now);
  // `gap`: since the tokens before; zero for the first ones.
  void Tokens(const StoredRequest& request, const RankIdentity& rank,
              int64_t count, absl::Duration gap) ABSL_LOCKS_EXCLUDED(mu_);
  void RankCounted(const RankIdentity& rank, const v1::RankMetrics& metrics)
      ABSL_LOCKS_EXCLUDED(mu_);
  void RankAttached(const v1::Register& rank) ABSL_LOCKS_EXCLUDED(mu_);
  // `replaced`: another stream of the same rank is open.
  void RankEnded(const RankIdentity& rank, bool replaced,
                 const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // The series of models that are not there (any more) end. On one thread only.
  void Load(const std::map<std::string, RequestQueue::ModelLoad>& by_model,
            int64_t ranks);
  // Rows that are kept of a model and row format.
  void ExpertMaps(std::string_view fingerprint, uint32_t format, int64_t rows);
  // A call without valid credentials. Lines come at most once a minute for one
  // address and cause, and for 1,000 of those in all.
  void Denied(std::string_view address, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mu_);
  // A connection that did not become one, or a message that was not looked at;
  // told as rarely. `address`: empty where nobody says it. `cause` is one of a
  // few words.
  void Refused(std::string_view address, std::string_view cause,
               std::string_view message) ABSL_LOCKS_EXCLUDED(mu_);

  // The text of /metrics.
  std::string MetricsText() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  template <typename Metric>
  using Family = prometheus::Family<Metric>;
  using Labels = std::map<std::string, std::string>;

  prometheus::Histogram& Histogram(
      const char* name, const char* help, std::string_view model,
      const prometheus::Histogram::BucketBoundaries& buckets);
  prometheus::Counter& Counter(const char* name, const char* help,
                               const Labels& labels);
  void Observe(const StoredRequest& request);
  bool IsNews(std::string what) ABSL_LOCKS_EXCLUDED(mu_);

  const std::unique_ptr<EventLog> log_;
  const std::function<absl::Time()> now_;
  prometheus::Registry registry_;
  struct LoadGauges {
    prometheus::Gauge* waiting;
    prometheus::Gauge* running;
  };
  std::map<std::string, LoadGauges> load_;  // by name of the model
  prometheus::Family<prometheus::Gauge>& waiting_;
  prometheus::Family<prometheus::Gauge>& running_;
  prometheus::Gauge& ranks_;
  Mutex mu_;
  RankFigures rank_figures_ ABSL_GUARDED_BY(mu_);
  // What was told lately of whom nobody let in.
  std::map<std::string, absl::Time> told_ ABSL_GUARDED_BY(mu_);
};

}  // namespace portolan

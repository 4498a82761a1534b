#include "cluster/coordinator/status_page.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "runtime/base/units.h"

namespace portolan {

std::string StatusPage(const v1::Stats& stats) {
  std::string page = absl::StrFormat(
      "portolan coordinator %s, up %s%s\n\n"
      "requests  %d waiting, %d running; %d accepted, %d rejected, %d done, "
      "%d failed, %d cancelled\n"
      "tokens    %d, now %.1f a second\n\n",
      stats.version(),
      absl::FormatDuration(
          absl::Seconds(static_cast<int64_t>(stats.uptime_s()))),
      stats.draining() ? ", draining" : "", stats.queued(), stats.running(),
      stats.accepted(), stats.rejected(), stats.done(), stats.failed(),
      stats.cancelled(), stats.tokens(), stats.tokens_per_s());
  absl::StrAppendFormat(&page, "%-20s %5s %-24s %-20s %8s %5s %12s %9s\n",
                        "job", "rank", "host", "model", "running", "free",
                        "tokens", "silent");
  for (const v1::RankStats& rank : stats.ranks()) {
    absl::StrAppendFormat(&page,
                          "%-20s %5d %-24s %-20s %8d %5d %12d %8.1fs%s\n",
                          rank.job(), rank.rank(), rank.host(), rank.model(),
                          rank.running(), rank.free_sequences(), rank.tokens(),
                          rank.silent_s(), rank.draining() ? " draining" : "");
    absl::StrAppendFormat(&page,
                          "%20s experts: %d hits, %d late, %d misses, waited "
                          "%.1f s, %s of memory\n",
                          "", rank.expert_hits(), rank.expert_late(),
                          rank.expert_misses(), rank.expert_stall_s(),
                          FormatBytes(rank.expert_memory_bytes()));
  }
  if (stats.ranks_size() == 0) page += "(no rank is attached)\n";
  return page;
}

}  // namespace portolan

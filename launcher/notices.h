#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/transport.h"

namespace portolan {

// Notices tell the user something that changes no result, on stderr.

// Tells one of this rank alone, at once: "notice: rank 1 on HOST: TEXT", or
// without the rank where there is no other.
void TellNotice(const Transport& transport, std::string_view text);

// Tells those of all ranks, which rank 0 prints: one that all ranks have once,
// as "notice: TEXT", others once with the ranks that have it. Collective.
// Errors: as GatherToRoot().
absl::Status TellNotices(Transport& transport,
                         const std::vector<std::string>& mine,
                         absl::Duration timeout);

// As Report() (console.h), but of an error that all ranks have (IsOfAllRanks()
// in agreement.h) rank 0 tells alone, and the others go on once it has; one
// that does not hear of rank 0 tells it itself. Collective for such an error.
void ReportOnce(Transport& transport, const absl::Status& status);

// The lines of TellNotices(). `hosts`: of each rank.
std::vector<std::string> MergeNotices(
    std::span<const std::vector<std::string>> by_rank,
    std::span<const std::string> hosts);

}  // namespace portolan

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/transport.h"

namespace portolan {

// Brings one text of every rank to rank 0. Collective: two exchanges, the sizes
// and the texts. Returns the texts by rank on rank 0, nothing elsewhere.
// Errors: as Transport::AllToAllV().
absl::StatusOr<std::vector<std::string>> GatherToRoot(Transport& transport,
                                                      std::string_view text,
                                                      absl::Duration timeout);

// Brings a text of rank 0 to all ranks. Collective: two exchanges.
// Errors: as Transport::AllToAllV().
absl::StatusOr<std::string> BroadcastFromRoot(Transport& transport,
                                              std::string_view text,
                                              absl::Duration timeout);

// All ranks call it with how they fared so far, and all get the same answer:
// OK, or the error of the lowest rank that failed, naming it, IsOfAllRanks()
// (agreement.h). So that a rank which cannot read its files, say, ends the job
// with its own words.
// Errors else: as Transport::AllToAllV().
absl::Status AgreeOnStatus(Transport& transport, const absl::Status& mine,
                           absl::Duration timeout);

// Whether any rank says so; all get the same answer.
// Errors: as Transport::AllToAllV().
absl::StatusOr<bool> AnyRank(Transport& transport, bool mine,
                             absl::Duration timeout);

}  // namespace portolan

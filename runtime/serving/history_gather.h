#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/transport.h"
#include "experts/history_mailbox.h"

namespace portolan {

// Brings what the ranks of a job learnt to rank 0, for --history: takes the
// rows that wait in every rank's mailbox and delivers those of the others to
// rank 0's. Collective; for jobs without a coordinator, which does this
// otherwise. Errors: as Transport::AllToAllV(); kDataLoss naming the rank whose
// rows cannot be read.
absl::Status GatherHistory(Transport& transport, HistoryMailbox& mailbox,
                           absl::Duration timeout);

}  // namespace portolan

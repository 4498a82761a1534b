#include "comm/peer_errors.h"

#include "absl/strings/str_cat.h"

namespace portolan {

std::string Describe(const WaitContext& context) {
  std::string text = absl::StrCat(" in phase `", context.phase, "`");
  if (context.layer >= 0) absl::StrAppend(&text, " of layer ", context.layer);
  if (context.step >= 0) {
    absl::StrAppend(&text, context.layer >= 0 ? ", step " : " of step ",
                    context.step);
  }
  return text;
}

absl::Status LostPeerError(const Transport& transport, const LostPeer& lost,
                           const WaitContext& context) {
  return absl::Status(
      lost.code, absl::StrCat("rank ", ToIndex(lost.rank), " on ",
                              transport.host(lost.rank), " is lost (", lost.how,
                              "), noticed by rank ", ToIndex(transport.rank()),
                              Describe(context), ": restart the job"));
}

absl::Status SlowPeersError(const Transport& transport,
                            std::span<const Rank> slow,
                            const WaitContext& context) {
  std::string ranks;
  for (const Rank rank : slow) {
    absl::StrAppend(&ranks, ranks.empty() ? "" : ", ", "rank ", ToIndex(rank),
                    " on ", transport.host(rank));
  }
  return absl::DeadlineExceededError(absl::StrCat(
      ranks, slow.size() == 1 ? " is" : " are", " slow: nothing came for ",
      absl::FormatDuration(context.timeout), " at rank ",
      ToIndex(transport.rank()), Describe(context),
      "; look at that rank, or allow more time"));
}

}  // namespace portolan

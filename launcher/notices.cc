#include "launcher/notices.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "comm/agreement.h"
#include "experts/byte_codec.h"
#include "launcher/console.h"
#include "runtime/base/status_macros.h"
#include "runtime/serving/collectives.h"

namespace portolan {
namespace {

std::string RankName(size_t rank, absl::string_view host) {
  return absl::StrCat("rank ", rank, " on ", host);
}

std::string Encode(const std::vector<std::string>& texts) {
  ByteWriter out;
  // Never empty: a start takes as many messages whatever there is to say.
  out.Put(static_cast<uint32_t>(texts.size()));
  for (const std::string& text : texts) out.PutString(text);
  const auto bytes = out.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string> Decode(std::string_view bytes) {
  ByteReader in(std::as_bytes(std::span(bytes)));
  const auto count = in.Get<uint32_t>();
  std::vector<std::string> texts;
  while (in.ok() && texts.size() < count) texts.push_back(in.GetString());
  return texts;
}

}  // namespace

void TellNotice(const Transport& transport, std::string_view text) {
  const Rank rank = transport.rank();
  const std::string who =
      transport.world_size() == 1
          ? ""
          : RankName(static_cast<size_t>(ToIndex(rank)), transport.host(rank)) +
                ": ";
  std::fprintf(stderr, "notice: %s%s\n", who.c_str(),
               std::string(text).c_str());
}

void ReportOnce(Transport& transport, const absl::Status& status) {
  // mpirun ends all ranks soon after the first one has ended, so nobody does
  // before the error is told.
  constexpr absl::Duration kTold = absl::Seconds(10);
  const bool tells = !IsOfAllRanks(status) || transport.rank() == Rank{0};
  if (tells) Report(status);
  if (!IsOfAllRanks(status)) return;
  const bool told = AnyRank(transport, /*mine=*/false, kTold).ok();
  if (!tells && !told) Report(status);
}

std::vector<std::string> MergeNotices(
    std::span<const std::vector<std::string>> by_rank,
    std::span<const std::string> hosts) {
  std::vector<std::string> told;
  std::vector<std::string> lines;
  for (const std::vector<std::string>& texts : by_rank) {
    for (const std::string& text : texts) {
      if (std::ranges::find(told, text) != told.end()) continue;
      told.push_back(text);
      std::vector<std::string> ranks;
      for (size_t rank = 0; rank < by_rank.size(); ++rank) {
        if (std::ranges::find(by_rank[rank], text) != by_rank[rank].end()) {
          ranks.push_back(RankName(rank, hosts[rank]));
        }
      }
      lines.push_back(ranks.size() == by_rank.size()
                          ? absl::StrCat("notice: ", text)
                          : absl::StrCat("notice: ", absl::StrJoin(ranks, ", "),
                                         ": ", text));
    }
  }
  return lines;
}

absl::Status TellNotices(Transport& transport,
                         const std::vector<std::string>& mine,
                         absl::Duration timeout) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<std::string> gathered,
                            GatherToRoot(transport, Encode(mine), timeout));
  std::vector<std::vector<std::string>> by_rank;
  std::vector<std::string> hosts;
  for (size_t rank = 0; rank < gathered.size(); ++rank) {
    by_rank.push_back(Decode(gathered[rank]));
    hosts.emplace_back(transport.host(Rank{static_cast<int>(rank)}));
  }
  for (const std::string& line : MergeNotices(by_rank, hosts)) {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  return absl::OkStatus();
}

}  // namespace portolan

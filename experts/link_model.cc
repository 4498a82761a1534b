#include "experts/link_model.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/units.h"

namespace portolan {
namespace {

absl::Status BadLink(std::string_view text, std::string_view flag) {
  return absl::InvalidArgumentError(absl::StrCat(
      absl::string_view(flag.data(), flag.size()), ": \"",
      absl::string_view(text.data(), text.size()),
      "\" is not BANDWIDTH/s,LATENCY; write for example 1GB/s,50us"));
}

}  // namespace

absl::StatusOr<LinkSpec> ParseLinkSpec(std::string_view text,
                                       std::string_view flag) {
  const size_t comma = text.find(',');
  std::string_view bandwidth = text.substr(0, comma);
  if (!bandwidth.ends_with("/s")) return BadLink(text, flag);
  bandwidth.remove_suffix(2);
  const absl::StatusOr<int64_t> bytes = ParseBytes(bandwidth);
  if (!bytes.ok() || *bytes <= 0) return BadLink(text, flag);
  LinkSpec spec{.bytes_per_second = static_cast<double>(*bytes)};
  if (comma != std::string_view::npos) {
    const std::string_view latency = text.substr(comma + 1);
    if (!absl::ParseDuration({latency.data(), latency.size()}, &spec.latency) ||
        spec.latency < absl::ZeroDuration() ||
        spec.latency > absl::Minutes(1)) {
      return BadLink(text, flag);
    }
  }
  return spec;
}

std::string ToString(const LinkSpec& spec) {
  return absl::StrFormat("%g MB/s,%s", spec.bytes_per_second / 1e6,
                         absl::FormatDuration(spec.latency));
}

void LinkModel::Submit(uint64_t tag, int64_t bytes, bool first_of_load,
                       ReadClass read_class, absl::Time now) {
  Chunk chunk{.tag = tag, .duration = spec_.TimeOf(bytes), .submitted = now};
  if (first_of_load) chunk.duration += spec_.latency;
  auto& queue = read_class == ReadClass::kDemand ? demand_ : speculative_;
  queue.push_back(chunk);
}

void LinkModel::Promote(uint64_t tag) {
  const auto is_of = [tag](const Chunk& chunk) { return chunk.tag == tag; };
  std::vector<Chunk> promoted;
  std::ranges::copy_if(speculative_, std::back_inserter(promoted), is_of);
  demand_.insert(demand_.begin(), promoted.begin(), promoted.end());
  std::erase_if(speculative_, is_of);
}

std::optional<uint64_t> LinkModel::PopArrived(absl::Time now) {
  if (!on_link_) StartNext(now);
  if (!on_link_ || on_link_->arrival > now) return std::nullopt;
  const uint64_t tag = on_link_->tag;
  free_at_ = on_link_->arrival;
  on_link_.reset();
  return tag;
}

void LinkModel::StartNext(absl::Time now) {
  if (demand_.empty() && speculative_.empty()) return;
  // The moment at which the link takes its next chunk: what was submitted by
  // then competes, what came later does not.
  absl::Time start = absl::InfiniteFuture();
  if (!demand_.empty()) start = demand_.front().submitted;
  if (!speculative_.empty()) {
    start = std::min(start, speculative_.front().submitted);
  }
  start = std::max(start, free_at_);
  if (start > now) return;
  const bool demand_waits =
      !demand_.empty() && demand_.front().submitted <= start;
  auto& queue = demand_waits ? demand_ : speculative_;
  on_link_ = queue.front();
  queue.pop_front();
  on_link_->arrival = start + on_link_->duration;
}

absl::Time LinkModel::NextArrival() const {
  return on_link_ ? on_link_->arrival : absl::InfiniteFuture();
}

}  // namespace portolan

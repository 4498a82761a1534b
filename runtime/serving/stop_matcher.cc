#include "runtime/serving/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace portolan {

StopMatcher::StopMatcher(std::vector<std::string> stops)
    : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopMatcher::Push(std::string_view text) {
  if (stopped_) return "";
  pending_ += text;
  size_t cut = std::string::npos;
  for (const std::string& stop : stops_) {
    cut = std::min(cut, pending_.find(stop));
  }
  stopped_ = cut != std::string::npos;
  const size_t certain = stopped_ ? cut : pending_.size() - HeldBack();
  std::string out = pending_.substr(0, certain);
  pending_.erase(0, stopped_ ? pending_.size() : certain);
  return out;
}

std::string StopMatcher::Finish() { return std::exchange(pending_, ""); }

// The longest end of the pending text that is the beginning of a stop string.
size_t StopMatcher::HeldBack() const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    const size_t longest = std::min(stop.size() - 1, pending_.size());
    for (size_t length = longest; length > held; --length) {
      if (std::string_view(pending_).ends_with(
              std::string_view(stop).substr(0, length))) {
        held = length;
      }
    }
  }
  return held;
}

}  // namespace portolan

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace portolan {

// Cuts a stream of text before the first occurrence of any stop string. Text
// that may be the beginning of one is held back until it is certain.
//
// Pure. Thread-compatible.
class StopMatcher {
 public:
  // Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  // Returns what of the text so far is certain to be before a stop string and
  // was not returned yet. After a stop string nothing more is returned.
  std::string Push(std::string_view text);

  // The stream has ended: returns what was held back.
  std::string Finish();

  bool stopped() const { return stopped_; }

 private:
  size_t HeldBack() const;

  std::vector<std::string> stops_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace portolan

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/model/tokenizer/tokenizer.h"
#include "runtime/serving/stop_matcher.h"

namespace portolan {

// Makes the text of one sequence from its tokens: whole UTF-8 characters, cut
// before the first stop string.
//
// Thread-compatible. The tokenizer must outlive it.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops);

  // Returns the text that `token` makes certain; may be empty.
  std::string Push(int32_t token);

  // The sequence has ended: returns the rest.
  std::string Finish();

  // A stop string was met.
  bool stopped() const { return matcher_.stopped(); }

 private:
  StreamDecoder decoder_;
  StopMatcher matcher_;
};

}  // namespace portolan

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/trace.h"

namespace portolan {

// A trace and how errors call it: the name of its file.
struct NamedTrace {
  std::string name;
  Trace trace;
};

// One trace of several files. A run of R ranks wrote R of them, which stand
// together in any order: their steps become one by number, with the times of
// the slowest. Several runs follow each other as if they had been one: steps
// and sequences of later ones are counted on.
// Errors: kInvalidArgument naming the files and what is wrong with them: of
// different models or numbers of ranks, a rank twice, a rank's file missing.
absl::StatusOr<Trace> JoinTraces(std::vector<NamedTrace> files);

}  // namespace portolan

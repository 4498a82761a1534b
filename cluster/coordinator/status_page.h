#pragma once

#include <string>

#include "proto/inference.pb.h"

namespace portolan {

// The figures of GetStats as a page of text for people.
std::string StatusPage(const v1::Stats& stats);

}  // namespace portolan

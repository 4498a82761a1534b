#pragma once

#include <span>
#include <string>

#include "experts/replay_report.h"

namespace portolan {

// An SVG of its own: stall per token (left) and hit rate (right) against the
// memory budget, one line per policy, the oracle dashed. `title` goes above.
std::string PlotReplay(std::span<const ReplayRow> rows, std::string_view title);

}  // namespace portolan

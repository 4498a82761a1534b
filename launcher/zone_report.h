#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "runtime/base/profile.h"

namespace portolan {

using ZoneTotals = std::array<Profile::Total, kNumZones>;

// What came to `before` to make `after`.
ZoneTotals Difference(const ZoneTotals& after, const ZoneTotals& before);

// A table for people: microseconds of each zone per step, without its inner
// zones, and their share of the steps. Zones that took no time are left out.
std::string FormatZones(const ZoneTotals& zones, int64_t steps);

// The same figures: {"gate": microseconds per step, ...}.
nlohmann::ordered_json ZonesToJson(const ZoneTotals& zones, int64_t steps);

}  // namespace portolan

#include "launcher/zone_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace portolan {
namespace {

double SelfMicroseconds(const Profile::Total& total, int64_t steps) {
  return total.self_seconds * 1e6 /
         static_cast<double>(std::max<int64_t>(steps, 1));
}

}  // namespace

ZoneTotals Difference(const ZoneTotals& after, const ZoneTotals& before) {
  ZoneTotals result;
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = {
        .count = after[i].count - before[i].count,
        .seconds = after[i].seconds - before[i].seconds,
        .self_seconds = after[i].self_seconds - before[i].self_seconds};
  }
  return result;
}

std::string FormatZones(const ZoneTotals& zones, int64_t steps) {
  double all = 0;
  for (const Profile::Total& total : zones) all += total.self_seconds;
  std::string table = absl::StrFormat("# %-18s %10s %12s %7s\n", "zone",
                                      "times/step", "us/step", "share");
  for (int i = 0; i < kNumZones; ++i) {
    const Profile::Total& total = zones[static_cast<size_t>(i)];
    if (total.count == 0) continue;
    absl::StrAppendFormat(&table, "  %-18s %10.1f %12.1f %6.1f%%\n",
                          ZoneName(static_cast<Zone>(i)),
                          static_cast<double>(total.count) /
                              static_cast<double>(std::max<int64_t>(steps, 1)),
                          SelfMicroseconds(total, steps),
                          100 * total.self_seconds / all);
  }
  return table;
}

nlohmann::ordered_json ZonesToJson(const ZoneTotals& zones, int64_t steps) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (int i = 0; i < kNumZones; ++i) {
    const Profile::Total& total = zones[static_cast<size_t>(i)];
    if (total.count == 0) continue;
    json[ZoneName(static_cast<Zone>(i))] = SelfMicroseconds(total, steps);
  }
  return json;
}

}  // namespace portolan

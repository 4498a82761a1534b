#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "runtime/base/profile.h"

namespace portolan {
namespace {

size_t Index(Zone zone) { return static_cast<size_t>(zone); }

// Two layers: a step with a gate and an exchange each, in which experts run.
void RunTwoLayers(Profile* profile) {
  const ProfileScope step(profile, Zone::kStep);
  for (int32_t layer = 0; layer < 2; ++layer) {
    { const ProfileScope gate(profile, Zone::kGate, layer); }
    const ProfileScope exchange(profile, Zone::kExchange, layer);
    const ProfileScope experts(profile, Zone::kExperts, layer);
  }
}

nlohmann::json TraceOf(const Profile& profile, int rank) {
  const std::string path = testing::TempDir() + "/profile.json";
  EXPECT_TRUE(profile.WriteTrace(path, rank).ok());
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

TEST(ProfileTest, ZonesHaveNamesOfTheirOwn) {
  std::set<std::string> names;
  for (int i = 0; i < kNumZones; ++i) {
    names.insert(ZoneName(static_cast<Zone>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kNumZones));
  EXPECT_FALSE(names.contains("?"));
}

TEST(ProfileTest, TheTraceIsJsonThatHoldsEveryZone) {
  Profile profile;
  RunTwoLayers(&profile);

  const nlohmann::json trace = TraceOf(profile, 3);

  const nlohmann::json& events = trace.at("traceEvents");
  ASSERT_EQ(events.size(), 8u);  // the process, and seven zones
  EXPECT_EQ(events[0].at("args").at("name"), "rank 3");
  EXPECT_EQ(events[1].at("name"), "step");
  EXPECT_EQ(events[3].at("name"), "exchange");
  EXPECT_EQ(events[3].at("args").at("layer"), 0);
  EXPECT_EQ(events[7].at("name"), "experts");
  for (const nlohmann::json& event : events) EXPECT_EQ(event.at("pid"), 3);
}

TEST(ProfileTest, ZonesOfTheTraceNest) {
  Profile profile;
  RunTwoLayers(&profile);

  std::vector<std::pair<double, double>> open;  // begin, end
  for (const nlohmann::json& event : TraceOf(profile, 0).at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    const double begin = event.at("ts");
    const double end = begin + event.at("dur").get<double>();
    while (!open.empty() && open.back().second <= begin) open.pop_back();
    if (!open.empty()) {
      EXPECT_LE(end, open.back().second + 0.002);
    }
    open.emplace_back(begin, end);
  }
}

TEST(ProfileTest, TheTimesOfAllZonesMakeUpTheStep) {
  Profile profile;
  RunTwoLayers(&profile);

  const auto totals = profile.Totals();

  double own = 0;
  for (const Profile::Total& total : totals) own += total.self_seconds;
  EXPECT_EQ(totals[Index(Zone::kStep)].count, 1);
  EXPECT_EQ(totals[Index(Zone::kExperts)].count, 2);
  EXPECT_NEAR(own, totals[Index(Zone::kStep)].seconds, 1e-9);
}

TEST(ProfileTest, AFullProfileKeepsTheFirstZonesAndCountsTheOthers) {
  Profile profile(3);
  RunTwoLayers(&profile);

  EXPECT_EQ(profile.num_dropped(), 4);
  EXPECT_EQ(TraceOf(profile, 0).at("otherData").at("dropped"), 4);
  EXPECT_EQ(TraceOf(profile, 0).at("traceEvents").size(), 4u);
  EXPECT_NE(profile.Notice().find("room for 3 zones; the 4 that came later"),
            std::string::npos);
  profile.Clear();
  EXPECT_EQ(profile.Notice(), "");
  EXPECT_EQ(profile.num_dropped(), 0);
  EXPECT_EQ(profile.Totals()[Index(Zone::kStep)].count, 0);
}

TEST(ProfileTest, WithoutAProfileAScopeDoesNothing) { RunTwoLayers(nullptr); }

TEST(ProfileTest, AFileThatCannotBeWrittenIsNamed) {
  const absl::Status status = Profile().WriteTrace("/no/such/dir/p.json", 0);

  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("/no/such/dir/p.json"), std::string::npos);
}

}  // namespace
}  // namespace portolan

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cluster/coordinator/shared_maps.h"
#include "gtest/gtest.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

std::string Key(std::vector<float> vector) {
  std::string key;
  for (const float value : vector) {
    const Fp16 half = ToFp16(value);
    key.append(reinterpret_cast<const char*>(&half), sizeof(half));
  }
  return key;
}

SharedMaps::Change Add(SharedMaps& maps, const std::string& key,
                       const std::string& map,
                       std::vector<uint64_t> useful = {}) {
  const SharedMaps::NewRow row = {key, map};
  return maps.Append({&row, 1}, useful).value();
}

// A replica that does as expert_map.proto says.
struct Follower {
  uint64_t version = 0;
  std::set<uint64_t> ids;

  void Follow(const SharedMaps& maps) {
    const SharedMaps::Delta delta = maps.Since(version);
    if (delta.snapshot) ids.clear();
    for (const uint64_t id : delta.removed) ids.erase(id);
    for (const uint64_t id : delta.added) ids.insert(id);
    version = maps.version();
  }
};

std::set<uint64_t> IdsOf(const SharedMaps& maps) {
  std::set<uint64_t> ids;
  for (const uint64_t id : maps.Since(maps.version() + 1).added) ids.insert(id);
  return ids;
}

TEST(SharedMapsTest, ARowThatIsHereAlreadyIsLeftOut) {
  SharedMaps maps({}, 1);
  Add(maps, Key({1, 0}), "a");

  const auto again = Add(maps, Key({1, 0}), "a");
  const auto other = Add(maps, Key({1, 0}), "b");

  EXPECT_EQ(again.kept, 0u);
  EXPECT_EQ(other.kept, 1u);
  EXPECT_EQ(maps.size(), 2u);
}

TEST(SharedMapsTest, AFullStoreGivesUpARowNearTheNewOne) {
  SharedMaps maps({.max_rows = 16}, 1);
  std::vector<uint64_t> here, there;
  for (int i = 0; i < 8; ++i) {
    here.push_back(
        Add(maps, Key({1, 0.01f * static_cast<float>(i)}), "x").added[0]);
    there.push_back(
        Add(maps, Key({0.01f * static_cast<float>(i), 1}), "y").added[0]);
  }

  const auto change = Add(maps, Key({1, 0.001f}), "new");

  ASSERT_EQ(change.removed.size(), 1u);
  EXPECT_EQ(change.removed[0], here[0]);
  EXPECT_EQ(maps.size(), 16u);
}

TEST(SharedMapsTest, OfSimilarRowsTheUsefulOnesStay) {
  SharedMaps maps({.max_rows = 3}, 1);
  const uint64_t first = Add(maps, Key({1, 0}), "a").added[0];
  const uint64_t second = Add(maps, Key({1, 0}), "b").added[0];
  Add(maps, Key({1, 0}), "c", {first, first});

  const auto change = Add(maps, Key({1, 0}), "d", {second});

  EXPECT_NE(maps.Find(first), nullptr);
  EXPECT_NE(maps.Find(second), nullptr);
  EXPECT_EQ(change.removed.size(), 1u);
}

TEST(SharedMapsTest, BytesAreBoundedToo) {
  SharedMaps maps({.max_rows = 100, .max_bytes = 1000}, 1);

  for (int i = 0; i < 20; ++i) {
    Add(maps, Key({1, static_cast<float>(i)}), std::string(100, 'a'));
    EXPECT_LE(maps.bytes(), 1000u);
  }
  EXPECT_GE(maps.size(), 9u);
}

TEST(SharedMapsTest, RestoredRowsBeyondTheCapacityGoTheLeastUsefulFirst) {
  SharedMaps rows({.max_rows = 2}, 10);
  SharedMaps bytes({.max_rows = 100, .max_bytes = 10}, 10);
  for (SharedMaps* maps : {&rows, &bytes}) {
    maps->Restore({.id = 1, .key = Key({1, 0}), .map = "a", .usefulness = 2});
    maps->Restore({.id = 2, .key = Key({0, 1}), .map = "b"});
    maps->Restore({.id = 3, .key = Key({1, 1}), .map = "c", .usefulness = 1});
    maps->Restore({.id = 4, .key = Key({1, 2}), .map = "d", .usefulness = 1});
    const uint64_t version = maps->version();

    maps->Trim();

    EXPECT_EQ(IdsOf(*maps), (std::set<uint64_t>{1, 4}));
    EXPECT_EQ(maps->bytes(), 10u);
    EXPECT_EQ(maps->Since(version).removed, (std::vector<uint64_t>{2, 3}));
  }
}

TEST(SharedMapsTest, BadRowsAreRefusedByFieldAndChangeNothing) {
  SharedMaps maps({}, 1);
  Add(maps, Key({1, 0}), "a");
  const std::string odd = "abc";
  const std::string good = Key({0, 1});
  const std::string shorter = Key({1});
  const std::string infinite = Key({INFINITY, 0});
  const uint64_t version = maps.version();

  for (const std::string& bad : {odd, shorter, infinite, std::string()}) {
    const std::vector<SharedMaps::NewRow> rows = {{good, "b"}, {bad, "c"}};
    const absl::Status status = maps.Append(rows, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(status.message().find("rows.key"), std::string::npos);
  }
  EXPECT_EQ(maps.version(), version);
  EXPECT_EQ(maps.size(), 1u);
}

TEST(SharedMapsTest, FollowersHoldTheSameRowsHoweverFarTheyLag) {
  std::mt19937 random(7);
  SharedMaps maps({.max_rows = 20, .log_length = 30}, 1);
  std::vector<Follower> followers(8);

  for (int i = 0; i < 500; ++i) {
    Add(maps,
        Key({static_cast<float>(random() % 100),
             static_cast<float>(random() % 100)}),
        absl::StrCat(i));
    for (size_t f = 0; f < followers.size(); ++f) {
      // The first follows closely, the last looks in now and then.
      if (random() % (1u << f) != 0) continue;
      followers[f].Follow(maps);
      ASSERT_EQ(followers[f].ids, IdsOf(maps)) << "follower " << f;
    }
  }
}

TEST(SharedMapsTest, ACloseFollowerGetsChangesAndNotTheWhole) {
  SharedMaps maps({}, 1);
  Add(maps, Key({1, 0}), "a");
  const uint64_t version = maps.version();
  const uint64_t id = Add(maps, Key({0, 1}), "b").added[0];

  const SharedMaps::Delta delta = maps.Since(version);

  EXPECT_FALSE(delta.snapshot);
  EXPECT_EQ(delta.added, std::vector<uint64_t>{id});
}

TEST(SharedMapsTest, AVersionOfAnotherLifeGivesASnapshot) {
  SharedMaps maps({}, 1000);
  maps.Restore({.id = 17, .key = Key({1, 0}), .map = "a"});

  EXPECT_TRUE(maps.Since(17).snapshot);
  EXPECT_TRUE(maps.Since(5000).snapshot);
  EXPECT_EQ(maps.Since(0).added, std::vector<uint64_t>{17});
  EXPECT_GT(Add(maps, Key({0, 1}), "b").added[0], 1000u);
}

}  // namespace
}  // namespace portolan

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_format.h"
#include "experts/expert_map_store.h"
#include "experts/trajectory_search.h"
#include "launcher/bench.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "runtime/base/check.h"
#include "runtime/base/cpu_time.h"
#include "runtime/base/cpu_topology.h"

namespace portolan {
namespace {

struct BenchMapsOptions {
  std::vector<int32_t> records = {1000, 10000, 100000};
  ExpertMapStore::Shape shape = {
      .embedding_dim = 192, .num_layers = 8, .num_experts = 32};
  int32_t searches = 200;
  bool json = false;
};

struct BenchMapsRow {
  std::string format;
  int32_t records = 0;
  int64_t bytes = 0;
  // Medians, in microseconds of CPU time.
  double embedding_us = 0;   // the nearest embedding
  double nearest8_us = 0;    // the eight nearest
  double trajectory_us = 0;  // one layer of a trajectory search
};

// Median CPU time of a call.
double MedianOf(int32_t calls, absl::FunctionRef<void(int32_t)> call) {
  std::vector<double> times;
  for (int32_t i = 0; i < calls; ++i) {
    const double start = ThreadCpuMicroseconds();
    call(i);
    times.push_back(ThreadCpuMicroseconds() - start);
  }
  std::ranges::sort(times);
  return times[times.size() / 2];
}

// Values whose distribution does not matter to a flat scan: it visits all.
class RandomMaps {
 public:
  explicit RandomMaps(const ExpertMapStore::Shape& shape)
      : shape_(shape),
        embedding_(static_cast<size_t>(shape.embedding_dim)),
        map_(static_cast<size_t>(shape.num_layers) *
             static_cast<size_t>(shape.num_experts)) {}

  void Draw() {
    for (float& value : embedding_) value = uniform_(random_) - 0.5f;
    for (float& value : map_) value = uniform_(random_);
  }
  std::span<const float> embedding() const { return embedding_; }
  MatrixView<const float> map() const {
    return {map_, shape_.num_layers, shape_.num_experts};
  }

 private:
  const ExpertMapStore::Shape shape_;
  std::mt19937 random_{1};
  std::uniform_real_distribution<float> uniform_{0.0f, 1.0f};
  std::vector<float> embedding_;
  std::vector<float> map_;
};

BenchMapsRow MeasureStore(const ExpertMapStore::Shape& shape,
                          int32_t searches) {
  ExpertMapStore store(shape);
  RandomMaps maps(shape);
  for (int32_t i = 0; i < shape.capacity; ++i) {
    maps.Draw();
    store.Add(maps.embedding(), maps.map());
  }
  BenchMapsRow row{
      .format = shape.format == MapFormat::kExact ? "exact" : "compact",
      .records = shape.capacity,
      .bytes = store.bytes()};
  // A query is drawn outside of what is timed.
  maps.Draw();
  int64_t found = 0;
  row.embedding_us = MedianOf(searches, [&](int32_t) {
    found += store.MatchEmbedding(maps.embedding())->record;
  });
  std::vector<ExpertMapStore::Match> matches;
  row.nearest8_us = MedianOf(searches, [&](int32_t) {
    store.NearestEmbeddings(maps.embedding(), 8, matches);
    found += matches.front().record;
  });
  TrajectorySearch search(store);
  row.trajectory_us = MedianOf(searches, [&](int32_t i) {
    const int32_t layer = i % shape.num_layers;
    if (layer == 0) search.Begin();
    search.Extend(layer, maps.map().Row(layer));
    found += search.Best()->record;
  });
  PORTOLAN_CHECK(found >= 0);  // so that no search can be left out
  return row;
}

nlohmann::ordered_json ToJson(const BenchMapsRow& row) {
  return {{"format", row.format},
          {"records", row.records},
          {"bytes", row.bytes},
          {"embedding_us", row.embedding_us},
          {"nearest8_us", row.nearest8_us},
          {"trajectory_us_per_layer", row.trajectory_us}};
}

absl::Status RunBenchMaps(const BenchMapsOptions& options) {
  std::vector<BenchMapsRow> rows;
  for (const MapFormat format : {MapFormat::kExact, MapFormat::kCompact}) {
    for (const int32_t records : options.records) {
      ExpertMapStore::Shape shape = options.shape;
      shape.capacity = records;
      shape.format = format;
      shape.top_m = std::min(shape.top_m, shape.num_experts);
      rows.push_back(MeasureStore(shape, options.searches));
    }
  }
  if (options.json) {
    nlohmann::ordered_json json = {{"cpu", CpuModelName()}};
    for (const BenchMapsRow& row : rows) json["rows"].push_back(ToJson(row));
    std::printf("%s\n", json.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf(
      "# %s, %d layers of %d experts, embeddings of %d; median us of CPU time\n"
      "%-8s %8s %9s %12s %12s %17s\n",
      CpuModelName().c_str(), options.shape.num_layers,
      options.shape.num_experts, options.shape.embedding_dim, "format",
      "records", "MB", "embedding", "nearest 8", "trajectory/layer");
  for (const BenchMapsRow& row : rows) {
    std::printf("%-8s %8d %9.1f %12.1f %12.1f %17.1f\n", row.format.c_str(),
                row.records, static_cast<double>(row.bytes) / 1e6,
                row.embedding_us, row.nearest8_us, row.trajectory_us);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchMapsCommand(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<BenchMapsOptions>();
  CLI::App* command = bench.add_subcommand(
      "maps", "Time to search a store of expert maps, by its size");
  AddFlag(*command, "--records", options->records,
          "Maps in the store, comma-separated")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000));
  AddFlag(*command, "--layers", options->shape.num_layers, "MoE layers")
      ->check(CLI::Range(1, 1024));
  AddFlag(*command, "--experts", options->shape.num_experts, "Of a layer")
      ->check(CLI::Range(1, 4096));
  AddFlag(*command, "--hidden", options->shape.embedding_dim, "Of embeddings")
      ->check(CLI::Range(1, 1 << 16));
  AddFlag(*command, "--searches", options->searches, "Of each kind")
      ->check(CLI::Range(1, 1'000'000));
  AddSwitch(*command, "--json", options->json, "Print JSON");
  command->callback(
      [options, &exit_code] { exit_code = Report(RunBenchMaps(*options)); });
}

}  // namespace portolan

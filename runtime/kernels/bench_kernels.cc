#include "runtime/kernels/bench_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/bench_timing.h"
#include "runtime/kernels/kernels.h"
#include "runtime/kernels/quantise.h"
#include "runtime/kernels/read_bandwidth.h"
#include "runtime/kernels/scratch.h"

namespace portolan {
namespace {

constexpr int64_t kExperts = 8;      // groups of one "experts" call
constexpr int64_t kCheckedRows = 4;  // whose results are compared

constexpr int64_t kManyRows = 256;  // of attention and norms in prefill

constexpr int32_t kNumHeads = 16;
constexpr KvLayout kKvLayout = {.num_kv_heads = 4, .head_dim = 64};

// Pseudo-random values in (-1, 1), as many different ones as it takes.
void Fill(float* values, int64_t count) {
  uint32_t state = 12345;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
}

void Fill(Bf16* values, int64_t count) {
  uint32_t state = 54321;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] =
        ToBf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
  }
}

int64_t CountDifferences(const float* a, const float* b, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  }
  return wrong;
}

int64_t PoolBytesOf(const KernelBenchOptions& options) {
  return std::max(options.pool_bytes,
                  kExperts * PackedBytes(options.n, options.k));
}

int64_t MostRows(const KernelBenchOptions& options) {
  return std::max(kManyRows,
                  *std::max_element(options.rows.begin(), options.rows.end()));
}

class Bench {
 public:
  explicit Bench(const KernelBenchOptions& options)
      : options_(options),
        pool_(options.num_threads, options.cpus),
        one_thread_(1) {
    if (options_.paths.empty()) options_.paths = SupportedCpuPaths();
    if (options_.formats.empty()) {
      options_.formats = {WeightFormat::kBf16, WeightFormat::kInt8,
                          WeightFormat::kInt4};
    }
    weights_data_ = weights_.Get<std::byte>(PoolBytes());
    const int64_t rows = MostRows(options_);
    x_f32_ = rows_.Get<float>(rows * options_.k);
    Fill(x_f32_, rows * options_.k);
    x_data_ = x_.Get<Bf16>(rows * PaddedCols(options_.k));
    out_data_ = out_.Get<float>(kExperts * rows * options_.n);
  }

  std::vector<KernelBenchRow> Run() {
    MeasureBandwidth();
    MeasurePack();
    for (const CpuPath path : options_.paths) {
      Kernels kernels = KernelsOf(path);
      Kernels scalar(CpuPath::kScalar, one_thread_);
      MeasurePeak(kernels);
      for (const WeightFormat format : options_.formats) {
        PrepareWeights(format);
        for (const int64_t m : options_.rows) MeasureLinear(kernels, scalar, m);
        for (const int64_t m : options_.rows) {
          MeasureExperts(kernels, scalar, m);
        }
      }
      for (const int64_t m : {int64_t{1}, kManyRows}) {
        MeasureAttention(kernels, scalar, std::min(m, options_.context));
        MeasureRmsNorm(kernels, m);
      }
    }
    return rows_out_;
  }

 private:
  Kernels KernelsOf(CpuPath path) {
    if (options_.table == nullptr) return Kernels(path, pool_);
    return Kernels(path, *options_.table, pool_);
  }

  int64_t MatrixBytes() const {
    return PackedBytes(options_.n, options_.k, format_);
  }

  int64_t PoolBytes() const { return PoolBytesOf(options_); }

  // Fills the pool with copies of one matrix.
  void PrepareWeights(WeightFormat format) {
    const int64_t num_tiles =
        NumOutputBlocks(options_.n) * NumInputBlocks(options_.k);
    std::vector<Bf16> tiles(static_cast<size_t>(num_tiles * kTileElements));
    Fill(tiles.data(), num_tiles * kTileElements);
    format_ = format;
    const int64_t bytes = MatrixBytes();
    if (format == WeightFormat::kBf16) {
      std::memcpy(weights_data_, tiles.data(), static_cast<size_t>(bytes));
    } else {
      QuantisationError error;
      PORTOLAN_CHECK(
          QuantiseTiles(format, tiles.data(), num_tiles, weights_data_, error));
    }
    num_matrices_ = PoolBytes() / bytes;
    for (int64_t i = 1; i < num_matrices_; ++i) {
      std::memcpy(weights_data_ + i * bytes, weights_data_,
                  static_cast<size_t>(bytes));
    }
  }

  // The matrices in turn: each was last touched a whole pool ago.
  std::byte* NextMatrixData() {
    next_matrix_ = (next_matrix_ + 1) % num_matrices_;
    return weights_data_ + next_matrix_ * MatrixBytes();
  }

  PackedMatrix NextMatrix() {
    return {.data = NextMatrixData(),
            .n = options_.n,
            .k = options_.k,
            .format = format_};
  }

  ActivationView X(Kernels& kernels, int64_t m) {
    const ActivationView x = {.data = reinterpret_cast<std::byte*>(x_data_),
                              .rows = m,
                              .cols = options_.k,
                              .stride = PaddedCols(options_.k)};
    const auto count = static_cast<size_t>(m * options_.k);
    kernels.Round({std::span<const float>(x_f32_, count), m, options_.k}, x);
    return x;
  }

  void Add(KernelBenchRow row) {
    const double memory = bandwidth_ > 0 ? row.gb_s / bandwidth_ : 0;
    const double arithmetic = peak_ > 0 ? row.gflop_s / peak_ : 0;
    row.percent_of_limit = 100 * std::max(memory, arithmetic);
    rows_out_.push_back(std::move(row));
  }

  void MeasureBandwidth() {
    std::memset(weights_data_, 1, static_cast<size_t>(PoolBytes()));
    for (const int threads : {1, options_.num_threads}) {
      bandwidth_ = 0;
      const double gb_s =
          MeasureReadBandwidth(
              threads == 1 ? one_thread_ : pool_,
              {weights_data_, static_cast<size_t>(PoolBytes())}, checksum_) /
          1e9;
      Add({.name = "read bandwidth",
           .path = "-",
           .num_threads = threads,
           .gb_s = gb_s});
      bandwidth_ = gb_s;
      if (options_.num_threads == 1) break;
    }
  }

  // Packing of one matrix, as a thread that loads experts does it.
  void MeasurePack() {
    std::vector<Bf16> rows(static_cast<size_t>(options_.n * options_.k));
    Fill(rows.data(), options_.n * options_.k);
    format_ = WeightFormat::kBf16;
    num_matrices_ = PoolBytes() / MatrixBytes();
    const double seconds = MedianSeconds(options_.seconds_per_row, [&] {
      PackMatrix(rows.data(), options_.k, options_.n, options_.k,
                 reinterpret_cast<Bf16*>(NextMatrixData()));
    });
    rows_out_.push_back(
        {.name = "pack",
         .path = "-",
         .num_threads = 1,
         .gb_s = static_cast<double>(MatrixBytes()) / seconds / 1e9});
  }

  void MeasurePeak(Kernels& kernels) {
    peak_ = 0;
    for (const int threads : {1, options_.num_threads}) {
      ThreadPool& pool = threads == 1 ? one_thread_ : pool_;
      constexpr int64_t kIterations = 50'000;
      std::vector<int64_t> flop(static_cast<size_t>(threads));
      double fastest = 1e30;
      for (int round = 0; round < 20; ++round) {
        const double start = Now();
        pool.ParallelFor(threads, [&](int64_t i) {
          alignas(64) float sink[256] = {};
          flop[static_cast<size_t>(i)] =
              kernels.table().peak(kIterations, sink);
          checksum_ += sink[0] > 1e30f;
        });
        fastest = std::min(fastest, Now() - start);
      }
      const auto total = static_cast<double>(
          std::accumulate(flop.begin(), flop.end(), int64_t{0}));
      peak_ = 0;
      const double gflop_s = total / fastest / 1e9;
      KernelBenchRow row = {.name = "peak",
                            .path = std::string(CpuPathName(kernels.path())),
                            .num_threads = threads,
                            .gflop_s = gflop_s};
      rows_out_.push_back(std::move(row));
      peak_ = gflop_s;
      if (options_.num_threads == 1) break;
    }
  }

  KernelBenchRow Row(const std::string& name, const Kernels& kernels,
                     int64_t m) const {
    return {.name = name,
            .path = std::string(CpuPathName(kernels.path())),
            .num_threads = options_.num_threads,
            .m = m};
  }

  std::string FormatSuffix() const {
    return format_ == WeightFormat::kBf16
               ? std::string()
               : absl::StrCat(" ", std::string(WeightFormatName(format_)));
  }

  void MeasureLinear(Kernels& kernels, Kernels& scalar, int64_t m) {
    const ActivationView x = X(kernels, m);
    const double seconds = MedianSeconds(options_.seconds_per_row, [&] {
      kernels.Linear(x, NextMatrix(), nullptr, out_data_, options_.n);
    });
    KernelBenchRow row = Row("linear" + FormatSuffix(), kernels, m);
    row.gb_s = static_cast<double>(MatrixBytes()) / seconds / 1e9;
    row.gflop_s =
        static_cast<double>(2 * m * options_.n * options_.k) / seconds / 1e9;
    row.wrong = CountWrong(scalar, x);
    Add(std::move(row));
  }

  // Among the results of x at the start of out_data_: of some rows, the first
  // and the last among them, for the scalar path is slow.
  int64_t CountWrong(Kernels& scalar, const ActivationView& x) {
    const int64_t n = options_.n;
    const int64_t checked = std::min(x.rows, kCheckedRows);
    std::vector<int32_t> x_rows(static_cast<size_t>(checked));
    std::vector<int32_t> out_rows(x_rows.size());
    std::iota(out_rows.begin(), out_rows.end(), 0);
    for (const int32_t i : out_rows) {
      x_rows[static_cast<size_t>(i)] = static_cast<int32_t>(
          i * (x.rows - 1) / std::max<int64_t>(checked - 1, 1));
    }
    std::vector<float> expected(static_cast<size_t>(checked * n));
    const Kernels::LinearGroup group = {
        .w = NextMatrix(), .x_rows = x_rows, .out_rows = out_rows};
    scalar.GroupedLinear(x, {&group, 1}, expected.data(), n);
    int64_t wrong = 0;
    for (const int32_t i : out_rows) {
      wrong += CountDifferences(out_data_ + x_rows[static_cast<size_t>(i)] * n,
                                expected.data() + i * n, n);
    }
    return wrong;
  }

  // Several matrices with m rows each in one region, as a layer's experts.
  void MeasureExperts(Kernels& kernels, Kernels& scalar, int64_t m) {
    const ActivationView x = X(kernels, m);
    std::vector<int32_t> x_rows(static_cast<size_t>(m));
    std::iota(x_rows.begin(), x_rows.end(), 0);
    std::vector<int32_t> out_rows(static_cast<size_t>(kExperts * m));
    std::iota(out_rows.begin(), out_rows.end(), 0);
    std::vector<Kernels::LinearGroup> groups(kExperts);
    const double seconds = MedianSeconds(options_.seconds_per_row, [&] {
      for (size_t e = 0; e < groups.size(); ++e) {
        groups[e] = {.w = NextMatrix(),
                     .x_rows = x_rows,
                     .out_rows = std::span<const int32_t>(out_rows).subspan(
                         e * static_cast<size_t>(m), static_cast<size_t>(m))};
      }
      kernels.GroupedLinear(x, groups, out_data_, options_.n);
    });
    KernelBenchRow row = Row("8 experts" + FormatSuffix(), kernels, m);
    row.gb_s = static_cast<double>(kExperts * MatrixBytes()) / seconds / 1e9;
    row.gflop_s =
        static_cast<double>(2 * kExperts * m * options_.n * options_.k) /
        seconds / 1e9;
    // All matrices are equal, so all groups have the first one's results.
    row.wrong = CountWrong(scalar, x);
    for (size_t e = 1; e < groups.size(); ++e) {
      row.wrong += CountDifferences(
          out_data_, out_data_ + static_cast<int64_t>(e) * m * options_.n,
          m * options_.n);
    }
    Add(std::move(row));
  }

  // The last m positions of a context.
  void MeasureAttention(Kernels& kernels, Kernels& scalar, int64_t m) {
    const int64_t num_pages =
        (options_.context + kPageTokens - 1) / kPageTokens;
    auto* kv = kv_.Get<std::byte>(num_pages * kKvLayout.PageBytes());
    Fill(reinterpret_cast<Bf16*>(kv), num_pages * kKvLayout.PageBytes() / 2);
    std::vector<std::byte*> pages;
    for (int64_t i = 0; i < num_pages; ++i) {
      pages.push_back(kv + i * kKvLayout.PageBytes());
    }
    const int64_t cols = kNumHeads * kKvLayout.head_dim;
    std::vector<Bf16> q(static_cast<size_t>(m * cols));
    Fill(q.data(), m * cols);
    std::vector<Bf16> result(q.size());
    std::vector<Bf16> expected(q.size());
    const auto view = [&](std::vector<Bf16>& data) {
      return ActivationView{.data = reinterpret_cast<std::byte*>(data.data()),
                            .rows = m,
                            .cols = cols,
                            .stride = cols};
    };
    Kernels::Sequence sequence = {
        .num_rows = static_cast<int32_t>(m),
        .first_position = static_cast<int32_t>(options_.context - m),
        .pages = pages.data()};
    const double seconds = MedianSeconds(options_.seconds_per_row, [&] {
      kernels.Attention(kKvLayout, {&sequence, 1}, view(q), kNumHeads, 0.125f,
                        0, view(result));
    });
    sequence.num_rows = static_cast<int32_t>(std::min(m, kCheckedRows));
    scalar.Attention(kKvLayout, {&sequence, 1}, view(q), kNumHeads, 0.125f, 0,
                     view(expected));
    KernelBenchRow row =
        Row(absl::StrCat("attention ", options_.context), kernels, m);
    row.gb_s =
        static_cast<double>(num_pages * kKvLayout.PageBytes()) / seconds / 1e9;
    row.gflop_s =
        static_cast<double>(4 * m * cols * (options_.context - m / 2)) /
        seconds / 1e9;
    for (int64_t i = 0; i < sequence.num_rows * cols; ++i) {
      const auto at = static_cast<size_t>(i);
      row.wrong += result[at] != expected[at];
    }
    Add(std::move(row));
  }

  void MeasureRmsNorm(Kernels& kernels, int64_t m) {
    const ActivationView x = X(kernels, m);
    const std::vector<float> weight(static_cast<size_t>(options_.k), 1.0f);
    const auto count = static_cast<size_t>(m * options_.k);
    const double seconds = MedianSeconds(options_.seconds_per_row / 4, [&] {
      kernels.RmsNorm({std::span<const float>(x_f32_, count), m, options_.k},
                      weight, 1e-6f, x, nullptr);
    });
    KernelBenchRow row = Row("rmsnorm", kernels, m);
    row.gb_s = static_cast<double>(m * options_.k * 6) / seconds / 1e9;
    Add(std::move(row));
  }

  KernelBenchOptions options_;
  ThreadPool pool_;
  ThreadPool one_thread_;
  std::vector<KernelBenchRow> rows_out_;
  double bandwidth_ = 0;
  double peak_ = 0;
  uint64_t checksum_ = 0;

  Scratch weights_, rows_, x_, out_, kv_;
  std::byte* weights_data_ = nullptr;
  WeightFormat format_ = WeightFormat::kBf16;
  float* x_f32_ = nullptr;
  Bf16* x_data_ = nullptr;
  float* out_data_ = nullptr;
  int64_t num_matrices_ = 0;
  int64_t next_matrix_ = 0;
};

}  // namespace

std::vector<KernelBenchRow> BenchKernels(const KernelBenchOptions& options) {
  PORTOLAN_CHECK(!options.rows.empty());
  return Bench(options).Run();
}

int64_t KernelBenchBytes(const KernelBenchOptions& options) {
  PORTOLAN_CHECK(!options.rows.empty());
  const int64_t row = options.k * int64_t{sizeof(float)} +
                      PaddedCols(options.k) * int64_t{sizeof(Bf16)} +
                      kExperts * options.n * int64_t{sizeof(float)};
  const int64_t matrix = PackedBytes(options.n, options.k);
  return PoolBytesOf(options) + MostRows(options) * row + 2 * matrix;
}

std::string FormatKernelBench(const std::vector<KernelBenchRow>& rows) {
  std::string table = absl::StrFormat("%-16s %-10s %7s %5s %9s %9s %8s %7s\n",
                                      "# kernel", "path", "threads", "rows",
                                      "GB/s", "GFLOP/s", "% limit", "#wrong");
  for (const KernelBenchRow& row : rows) {
    absl::StrAppendFormat(&table, "%-16s %-10s %7d %5d %9.1f %9.1f %8.0f %7d\n",
                          row.name, row.path, row.num_threads, row.m, row.gb_s,
                          row.gflop_s, row.percent_of_limit, row.wrong);
  }
  return table;
}

}  // namespace portolan

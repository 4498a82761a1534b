#include "runtime/kernels/read_bandwidth.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/kernels/bench_timing.h"
#include "runtime/kernels/scratch.h"

namespace portolan {
namespace {

// Sum of the bytes as words, so that none of the reads can be left out. Four
// streams: one alone does not keep enough cache lines on their way.
uint64_t ReadAll(const std::byte* data, int64_t bytes) {
  typedef uint64_t Words __attribute__((vector_size(16)));
  constexpr int64_t kStreams = 4;
  const int64_t stream = bytes / kStreams / 64 * 64;
  Words sums[kStreams] = {};
  for (int64_t i = 0; i < stream; i += 64) {
    for (int64_t s = 0; s < kStreams; ++s) {
      const std::byte* from = data + s * stream + i;
      __builtin_prefetch(from + 2048);
      for (int64_t part = 0; part < 64; part += 16) {
        Words words;
        std::memcpy(&words, from + part, sizeof(words));
        sums[s] += words;
      }
    }
  }
  const Words sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum[0] + sum[1];
}

}  // namespace

double MeasureReadBandwidth(ThreadPool& pool, std::span<const std::byte> memory,
                            uint64_t& checksum) {
  const int threads = pool.num_threads();
  const auto bytes = static_cast<int64_t>(memory.size());
  const int64_t slice = std::min<int64_t>(bytes, int64_t{32} << 20);
  const int64_t part = slice / threads / 64 * 64;
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  std::vector<double> seconds;
  for (int64_t at = 0; at + slice <= 2 * bytes; at += slice) {
    const std::byte* from = memory.data() + at % (bytes / slice * slice);
    const double start = Now();
    pool.ParallelFor(threads, [&](int64_t i) {
      sums[static_cast<size_t>(i)] += ReadAll(from + i * part, part);
    });
    seconds.push_back(Now() - start);
  }
  checksum += std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  return static_cast<double>(part * threads) / Median(seconds);
}

double MeasureReadBandwidth(ThreadPool& pool, int64_t pool_bytes) {
  Scratch memory;
  auto* data = memory.Get<std::byte>(pool_bytes);
  std::memset(data, 1, static_cast<size_t>(pool_bytes));
  uint64_t checksum = 0;
  const double speed = MeasureReadBandwidth(
      pool, {data, static_cast<size_t>(pool_bytes)}, checksum);
  PORTOLAN_CHECK(checksum != 0);  // nothing was left out
  return speed;
}

}  // namespace portolan

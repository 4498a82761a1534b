#include "runtime/kernels/attention_runner.h"

#include <algorithm>

#include "runtime/base/status_macros.h"
#include "runtime/kernels/product_runner.h"

namespace portolan {
namespace {

// Scores of one task stay within this, as far as a single query row lets them.
constexpr int64_t kScoreBytes = 1 << 20;

// Query rows times heads of a task.
constexpr int64_t kMaxRows = 96;

// Pages whose weights are prepared at a time.
constexpr int64_t kPagesPerPass = 16;

// Multiply-adds below which a region is not worth waking another thread.
constexpr int64_t kInlineWork = 200'000;

constexpr int64_t kTileRows = 32;  // any kernel's group of rows

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

// Pages lie far apart: the processor's own prefetch begins anew with each.
void Prefetch(const std::byte* from, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(from + i);
}

// Query rows that a task takes of `num_rows`, of which each has so many bytes
// of scores.
int64_t QueryRowsOfTask(int64_t heads, int64_t row_bytes, int64_t num_rows) {
  return std::clamp<int64_t>(
      std::min(kMaxRows / heads, kScoreBytes / row_bytes), 1, num_rows);
}

// Odd multiples of a cache line: rows do not fall into the same set.
int64_t ScoreStride(int64_t num_pages) { return num_pages * kPageTokens + 16; }

int64_t FirstVisible(int64_t position, int64_t window) {
  return window == 0 ? 0 : std::max<int64_t>(0, position - window + 1);
}

}  // namespace

struct AttentionRunner::Frame {
  Task task;
  int64_t heads;       // query heads per KV head
  int64_t rows;        // (end - begin) * heads, the heads of a query together
  int64_t first_page;  // that any row sees
  int64_t num_pages;
  int64_t score_stride;
  const GemmKernel* kernel;

  int64_t QueryRow(int64_t row) const {
    return task.sequence->first_row + task.begin + row / heads;
  }
  int64_t Position(int64_t row) const {
    return task.sequence->first_position + task.begin + row / heads;
  }
  int64_t QueryHead(int64_t row) const {
    return task.kv_head * heads + row % heads;
  }
  const std::byte* Page(int64_t i) const {
    return task.sequence->pages[first_page + i];
  }
};

AttentionRunner::AttentionRunner(const KernelTable& table, ThreadPool& pool)
    : table_(table),
      pool_(pool),
      workspaces_(static_cast<size_t>(pool.num_threads())) {}

absl::Status AttentionRunner::Reserve(const KvLayout& layout, int num_heads,
                                      int64_t positions) {
  const int64_t heads = num_heads / layout.num_kv_heads;
  const int64_t rows = RoundUp(std::max(heads, kMaxRows), kTileRows);
  const int64_t stride =
      ScoreStride((positions + kPageTokens - 1) / kPageTokens);
  // A task of one query row has the longest rows of scores; the others stay
  // within kScoreBytes, but for padding.
  const int64_t scores = std::max(
      (heads + kTileRows) * stride,
      kScoreBytes / 4 + kTileRows * stride + kMaxRows * ScoreStride(1));
  const int64_t prepared =
      rows * std::max(NumInputBlocks(layout.head_dim) * kTileInputs,
                      kPagesPerPass * kPageTokens);
  const int64_t values = rows * NumOutputBlocks(layout.head_dim) * kTileOutputs;
  for (Workspace& workspace : workspaces_) {
    PORTOLAN_RETURN_IF_ERROR(workspace.scores.Reserve(scores * 4));
    PORTOLAN_RETURN_IF_ERROR(workspace.prepared.Reserve(prepared * 4));
    PORTOLAN_RETURN_IF_ERROR(workspace.values.Reserve(values * 4));
    PORTOLAN_RETURN_IF_ERROR(workspace.sums.Reserve(rows * 4));
    PORTOLAN_RETURN_IF_ERROR(workspace.pointers.Reserve(rows * 8));
  }
  return absl::OkStatus();
}

void AttentionRunner::Run(const Call& call,
                          std::span<const Kernels::Sequence> sequences) {
  const int64_t work = PlanTasks(call, sequences);
  const auto run = [&](int64_t i, int thread) {
    RunTask(call, tasks_[static_cast<size_t>(i)],
            workspaces_[static_cast<size_t>(thread)]);
  };
  const auto num_tasks = static_cast<int64_t>(tasks_.size());
  if (work >= kInlineWork) {
    pool_.ParallelForThread(num_tasks, run);
    return;
  }
  FlushDenormals();
  for (int64_t i = 0; i < num_tasks; ++i) run(i, 0);
}

// Fills tasks_, those with the longest context of a sequence first; returns the
// number of multiply-adds.
int64_t AttentionRunner::PlanTasks(
    const Call& call, std::span<const Kernels::Sequence> sequences) {
  tasks_.clear();
  const int64_t heads = call.num_heads / call.layout->num_kv_heads;
  int64_t work = 0;
  for (const Kernels::Sequence& sequence : sequences) {
    const int64_t keys = sequence.first_position + sequence.num_rows;
    const int64_t row_bytes = heads * keys * 4;
    const int64_t step = QueryRowsOfTask(heads, row_bytes, sequence.num_rows);
    const int64_t chunks = (sequence.num_rows + step - 1) / step;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t end =
          std::min<int64_t>((chunk + 1) * step, sequence.num_rows);
      for (int32_t head = 0; head < call.layout->num_kv_heads; ++head) {
        tasks_.push_back({.sequence = &sequence,
                          .kv_head = head,
                          .begin = static_cast<int32_t>(chunk * step),
                          .end = static_cast<int32_t>(end)});
      }
    }
    work +=
        2 * sequence.num_rows * call.num_heads * keys * call.layout->head_dim;
  }
  return work;
}

void AttentionRunner::RunTask(const Call& call, const Task& task,
                              Workspace& workspace) const {
  const int64_t first_position = task.sequence->first_position;
  const int64_t last = first_position + task.end - 1;
  Frame frame;
  frame.task = task;
  frame.heads = call.num_heads / call.layout->num_kv_heads;
  frame.rows = (task.end - task.begin) * frame.heads;
  frame.first_page =
      FirstVisible(first_position + task.begin, call.window) / kPageTokens;
  frame.num_pages = last / kPageTokens + 1 - frame.first_page;
  frame.score_stride = ScoreStride(frame.num_pages);
  frame.kernel = call.layout->dtype == ActivationDtype::kF32
                     ? &table_.f32_weights
                     : &ChooseKernel(table_, call.q->dtype, frame.rows);
  if (frame.kernel->enter != nullptr) frame.kernel->enter();
  Score(call, frame, workspace);
  Weigh(call, frame, workspace);
  SumValues(call, frame, workspace);
  if (frame.kernel->leave != nullptr) frame.kernel->leave();
  Finish(call, frame, workspace);
}

// scores[row][position - first] = q . k.
void AttentionRunner::Score(const Call& call, const Frame& frame,
                            Workspace& workspace) const {
  const KvLayout& layout = *call.layout;
  const int64_t k_blocks = NumInputBlocks(layout.head_dim);
  const int64_t element = BytesOf(layout.dtype);
  const int64_t padded_rows = RoundUp(frame.rows, kTileRows);
  const void** rows = workspace.pointers.Get<const void*>(frame.rows);
  for (int64_t row = 0; row < frame.rows; ++row) {
    rows[row] = call.q->Row(frame.QueryRow(row)) +
                frame.QueryHead(row) * layout.head_dim * element;
  }
  MultiplyArgs args;
  args.x_k_blocks = k_blocks;
  args.k_blocks = k_blocks;
  args.rows = frame.rows;
  args.w_block_stride = k_blocks * kTileElements;
  args.num_blocks = kPageTokens / kTileOutputs;
  args.c_stride = frame.score_stride;
  void* prepared = workspace.prepared.Get<std::byte>(padded_rows * k_blocks *
                                                     kTileInputs * 4);
  frame.kernel->prepare(rows, frame.rows, layout.head_dim, k_blocks, prepared);
  args.x = prepared;
  float* scores = workspace.scores.Get<float>(padded_rows * frame.score_stride);
  for (int64_t page = 0; page < frame.num_pages; ++page) {
    const std::byte* w =
        frame.Page(page) + frame.task.kv_head * layout.HeadElements() * element;
    args.w = w;
    args.w_end = w + layout.KElements() * element;
    args.c = scores + page * kPageTokens;
    if (page + 1 < frame.num_pages) {
      Prefetch(frame.Page(page + 1) + (w - frame.Page(page)),
               layout.KElements() * element);
    }
    frame.kernel->multiply(args);
  }
}

// Scores become weights; their sums go to workspace.sums.
void AttentionRunner::Weigh(const Call& call, const Frame& frame,
                            Workspace& workspace) const {
  const bool to_bf16 = call.layout->dtype == ActivationDtype::kBf16;
  const int64_t first = frame.first_page * kPageTokens;
  float* sums = workspace.sums.Get<float>(frame.rows);
  float* scores = workspace.scores.Get<float>(0);
  for (int64_t row = 0; row < frame.rows; ++row) {
    const int64_t position = frame.Position(row);
    sums[row] = table_.attention_weights(
        scores + row * frame.score_stride, frame.num_pages * kPageTokens,
        FirstVisible(position, call.window) - first, position + 1 - first,
        call.scale, to_bf16);
  }
}

// values[row][dimension] = weights . v.
void AttentionRunner::SumValues(const Call& call, const Frame& frame,
                                Workspace& workspace) const {
  const KvLayout& layout = *call.layout;
  const int64_t element = BytesOf(layout.dtype);
  const int64_t padded_rows = RoundUp(frame.rows, kTileRows);
  MultiplyArgs args;
  args.rows = frame.rows;
  args.k_blocks = 1;
  args.w_block_stride = kTileElements;
  args.num_blocks = NumOutputBlocks(layout.head_dim);
  args.c_stride = args.num_blocks * kTileOutputs;
  args.c = workspace.values.Get<float>(padded_rows * args.c_stride);
  void* prepared = workspace.prepared.Get<std::byte>(
      padded_rows * kPagesPerPass * kPageTokens * 4);
  args.x = prepared;
  const auto* weights =
      reinterpret_cast<const std::byte*>(workspace.scores.Get<float>(0));
  const void** rows = workspace.pointers.Get<const void*>(frame.rows);
  for (int64_t pass = 0; pass < frame.num_pages; pass += kPagesPerPass) {
    args.x_k_blocks = std::min(kPagesPerPass, frame.num_pages - pass);
    for (int64_t row = 0; row < frame.rows; ++row) {
      rows[row] =
          weights + row * frame.score_stride * 4 + pass * kPageTokens * element;
    }
    frame.kernel->prepare(rows, frame.rows, args.x_k_blocks * kPageTokens,
                          args.x_k_blocks, prepared);
    for (int64_t i = 0; i < args.x_k_blocks; ++i) {
      const std::byte* w =
          frame.Page(pass + i) +
          (frame.task.kv_head * layout.HeadElements() + layout.KElements()) *
              element;
      args.first_k_block = i;
      args.w = w;
      args.w_end = w + layout.VElements() * element;
      args.accumulate = pass + i > 0;
      if (pass + i + 1 < frame.num_pages) {
        Prefetch(frame.Page(pass + i + 1) + (w - frame.Page(pass + i)),
                 layout.VElements() * element);
      }
      frame.kernel->multiply(args);
    }
  }
}

// out = values / sum.
void AttentionRunner::Finish(const Call& call, const Frame& frame,
                             Workspace& workspace) const {
  const int64_t head_dim = call.layout->head_dim;
  const int64_t stride = NumOutputBlocks(head_dim) * kTileOutputs;
  const float* values = workspace.values.Get<float>(0);
  const float* sums = workspace.sums.Get<float>(0);
  const ActivationView& out = *call.out;
  for (int64_t row = 0; row < frame.rows; ++row, values += stride) {
    std::byte* to = out.Row(frame.QueryRow(row)) +
                    frame.QueryHead(row) * head_dim * BytesOf(out.dtype);
    const bool f32 = out.dtype == ActivationDtype::kF32;
    table_.divide(values, head_dim, sums[row],
                  f32 ? reinterpret_cast<float*>(to) : nullptr,
                  f32 ? nullptr : reinterpret_cast<uint16_t*>(to));
  }
}

}  // namespace portolan

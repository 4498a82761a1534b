#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/matrix_view.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/activation.h"
#include "runtime/kernels/cpu_path.h"
#include "runtime/kernels/kernel_table.h"
#include "runtime/kernels/kv_layout.h"
#include "runtime/kernels/packed_matrix.h"
#include "runtime/kernels/rope_table.h"

namespace portolan {

class AttentionRunner;
class ProductRunner;
struct Product;

// The mathematics of a forward pass on memory: one CPU path, chosen once,
// parallel over a pool.
//
// Numerics. Every row of a result depends on its own row of input alone and has
// the same bits on every path, number of threads and batch. A dot product runs
// over blocks of 32 of K: one chain of fused multiply-adds over the even and
// one over the odd products, then sum += even + odd; f32, to nearest even,
// denormals flushed. Other sums run in 16 lanes and one fixed tree. Quantised
// weights (weight_format.h) count as the bf16 that they stand for, exactly: a
// product over them has the bits of one over that bf16 matrix.
//
// Shapes are the caller's promise (PORTOLAN_CHECK where cheap). Nothing is
// allocated once the largest shapes have been seen, or reserved.
// Thread-compatible: one call at a time; several objects may share a pool if
// their calls do not overlap.
class Kernels {
 public:
  // Requires CpuSupports(path). `pool` must outlive the object.
  Kernels(CpuPath path, ThreadPool& pool);
  // For tests of other tables than a path's own.
  Kernels(CpuPath path, const KernelTable& table, ThreadPool& pool);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  CpuPath path() const { return path_; }
  const KernelTable& table() const { return table_; }
  ThreadPool& pool() { return pool_; }

  // out[m, :w.n] = x[m, :] . w + bias, in f32; `out_stride` floats between
  // rows. x may be bf16 or f32 (then the weights are widened). `bias`: [n] or
  // null, added last.
  void Linear(const ActivationView& x, const PackedMatrix& w, const float* bias,
              float* out, int64_t out_stride);

  // Several matrices over one x, in one parallel region.
  struct LinearPart {
    PackedMatrix w;
    const float* bias = nullptr;
    float* out = nullptr;
    int64_t out_stride = 0;
  };
  void LinearMany(const ActivationView& x, std::span<const LinearPart> parts);

  // Several matrices, each over rows of its own, in one parallel region:
  // out[out_rows[i]] = x[x_rows[i]] . w for every i. The spans are of equal
  // length and must stay until the call returns.
  struct LinearGroup {
    PackedMatrix w;
    std::span<const int32_t> x_rows;
    std::span<const int32_t> out_rows;
  };
  void GroupedLinear(const ActivationView& x,
                     std::span<const LinearGroup> groups, float* out,
                     int64_t out_stride);

  // h[out_rows[i]] = silu(x[x_rows[i]] . gate) * (x[x_rows[i]] . up), rounded
  // once. `w` interleaves blocks of 16 outputs, gate first: w.n is a multiple
  // of 32. Writes w.n / 2 columns of h and no padding.
  void GroupedSwiGlu(const ActivationView& x,
                     std::span<const LinearGroup> groups,
                     const ActivationView& h);

  // act[row] = x / sqrt(mean(x^2) + eps) * weight, rounded once; also
  // unrounded to y_f32 [rows, cols] if that is not null.
  void RmsNorm(MatrixView<const float> x, std::span<const float> weight,
               float eps, const ActivationView& act, float* y_f32);

  // hidden += delta, then as RmsNorm(hidden, ...).
  void AddRmsNorm(MatrixView<float> hidden, MatrixView<const float> delta,
                  std::span<const float> weight, float eps,
                  const ActivationView& act, float* y_f32);

  // In place, for each head of each row: RMSNorm over head_dim (skipped if
  // `norm_weight` is empty), then half-split rotation of the first
  // rope.rotary_dim() dimensions. `heads` is [rows, num_heads * head_dim];
  // positions[row] < rope.num_positions().
  void HeadNormRope(MatrixView<float> heads, int head_dim,
                    std::span<const float> norm_weight, float eps,
                    const RopeTable& rope, std::span<const int32_t> positions);

  // Consecutive rows of one sequence at consecutive positions, and the pages
  // of one layer: page i holds positions [32 i, 32 i + 32), enough of them for
  // the last row.
  struct Sequence {
    int32_t first_row = 0;
    int32_t num_rows = 0;
    int32_t first_position = 0;
    std::byte* const* pages = nullptr;
  };

  // Rounds k and v, [rows, num_kv_heads * head_dim], to the layout's dtype and
  // writes them into the pages.
  void AppendKv(const KvLayout& layout, std::span<const Sequence> sequences,
                MatrixView<const float> k, MatrixView<const float> v);

  // Makes room for sequences of up to so many positions, so that Attention()
  // allocates nothing as they grow.
  // Errors: kResourceExhausted.
  absl::Status ReserveAttention(const KvLayout& layout, int num_heads,
                                int64_t positions);

  // Causal attention of q rows, [rows, num_heads * head_dim], over all
  // positions up to their own, or the last `window` of them if that is not 0.
  // num_heads is a multiple of the KV heads. The positions of the rows must
  // have been appended. q and out have the layout's dtype.
  void Attention(const KvLayout& layout, std::span<const Sequence> sequences,
                 const ActivationView& q, int num_heads, float scale,
                 int64_t window, const ActivationView& out);

  // out = x in the dtype of `out`, rounded once.
  void Round(MatrixView<const float> x, const ActivationView& out);

  // Row by row, in place.
  void Softmax(MatrixView<float> rows);
  void Sigmoid(MatrixView<float> rows);

 private:
  void ForRows(int64_t rows, int64_t cols,
               absl::FunctionRef<void(int64_t)> row) const;

  const CpuPath path_;
  const KernelTable& table_;
  ThreadPool& pool_;
  std::unique_ptr<ProductRunner> products_;
  std::unique_ptr<AttentionRunner> attention_;
  std::vector<Product> product_list_;  // of the call at work
};

}  // namespace portolan

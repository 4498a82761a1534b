#include "runtime/kernels/kernels.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/kernels/attention_runner.h"
#include "runtime/kernels/product_runner.h"

namespace portolan {
namespace {

const KernelTable& TableOf(CpuPath path) {
  PORTOLAN_CHECK(CpuSupports(path));
  switch (path) {
    case CpuPath::kScalar:
      // Any processor with AVX2 has FMA, and libm's fmaf() is slow.
      return CpuSupports(CpuPath::kAvx2) ? ScalarFmaTable() : ScalarTable();
    case CpuPath::kAvx2:
      return Avx2Table();
    case CpuPath::kAvx512:
      return Avx512Table();
    case CpuPath::kAvx512Bf16:
      return Avx512Bf16Table();
    case CpuPath::kAmx:
      return AmxTable();
  }
  return ScalarTable();
}

// Elements below which rows are not worth waking another thread, and those of
// one task.
constexpr int64_t kInlineElements = 16 * 1024;
constexpr int64_t kTaskElements = 8 * 1024;

void ClearPadding(const ActivationView& act, int64_t row) {
  const int64_t element = BytesOf(act.dtype);
  std::memset(act.Row(row) + act.cols * element, 0,
              static_cast<size_t>((PaddedCols(act.cols) - act.cols) * element));
}

// The row of `act` as the one of the two that fits its dtype.
struct RowTarget {
  float* f32 = nullptr;
  uint16_t* bf16 = nullptr;
};

RowTarget TargetRow(const ActivationView& act, int64_t row) {
  if (act.dtype == ActivationDtype::kF32) {
    return {.f32 = reinterpret_cast<float*>(act.Row(row))};
  }
  return {.bf16 = reinterpret_cast<uint16_t*>(act.Row(row))};
}

void CheckShape(const ActivationView& act, int64_t rows, int64_t cols) {
  PORTOLAN_CHECK(act.rows == rows && act.cols == cols);
  PORTOLAN_CHECK(act.stride >= PaddedCols(cols));
}

}  // namespace

Kernels::Kernels(CpuPath path, ThreadPool& pool)
    : Kernels(path, TableOf(path), pool) {}

Kernels::Kernels(CpuPath path, const KernelTable& table, ThreadPool& pool)
    : path_(path),
      table_(table),
      pool_(pool),
      products_(std::make_unique<ProductRunner>(table, pool)),
      attention_(std::make_unique<AttentionRunner>(table, pool)) {}

Kernels::~Kernels() = default;

void Kernels::Linear(const ActivationView& x, const PackedMatrix& w,
                     const float* bias, float* out, int64_t out_stride) {
  const LinearPart part = {
      .w = w, .bias = bias, .out = out, .out_stride = out_stride};
  LinearMany(x, std::span(&part, 1));
}

void Kernels::LinearMany(const ActivationView& x,
                         std::span<const LinearPart> parts) {
  product_list_.clear();
  for (const LinearPart& part : parts) {
    Product product;
    product.x = &x;
    product.w = part.w;
    product.rows = x.rows;
    product.bias = part.bias;
    product.out = part.out;
    product.out_stride = part.out_stride;
    product_list_.push_back(product);
  }
  products_->Run(product_list_);
}

void Kernels::GroupedLinear(const ActivationView& x,
                            std::span<const LinearGroup> groups, float* out,
                            int64_t out_stride) {
  product_list_.clear();
  for (const LinearGroup& group : groups) {
    PORTOLAN_CHECK(group.x_rows.size() == group.out_rows.size());
    Product product;
    product.x = &x;
    product.w = group.w;
    product.rows = static_cast<int64_t>(group.x_rows.size());
    product.x_rows = group.x_rows.data();
    product.out_rows = group.out_rows.data();
    product.out = out;
    product.out_stride = out_stride;
    product_list_.push_back(product);
  }
  products_->Run(product_list_);
}

void Kernels::GroupedSwiGlu(const ActivationView& x,
                            std::span<const LinearGroup> groups,
                            const ActivationView& h) {
  product_list_.clear();
  for (const LinearGroup& group : groups) {
    PORTOLAN_CHECK(group.x_rows.size() == group.out_rows.size());
    PORTOLAN_CHECK(group.w.n % (2 * kTileOutputs) == 0);
    PORTOLAN_CHECK(h.stride >= group.w.n / 2);
    Product product;
    product.x = &x;
    product.w = group.w;
    product.rows = static_cast<int64_t>(group.x_rows.size());
    product.x_rows = group.x_rows.data();
    product.out_rows = group.out_rows.data();
    product.swiglu = &h;
    product_list_.push_back(product);
  }
  products_->Run(product_list_);
}

void Kernels::ForRows(int64_t rows, int64_t cols,
                      absl::FunctionRef<void(int64_t)> row) const {
  if (rows * cols < kInlineElements) {
    FlushDenormals();
    for (int64_t i = 0; i < rows; ++i) row(i);
    return;
  }
  const int64_t step = std::max<int64_t>(1, kTaskElements / cols);
  pool_.ParallelFor((rows + step - 1) / step, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * step);
    for (int64_t i = task * step; i < end; ++i) row(i);
  });
}

void Kernels::RmsNorm(MatrixView<const float> x, std::span<const float> weight,
                      float eps, const ActivationView& act, float* y_f32) {
  const int64_t cols = x.cols();
  CheckShape(act, x.rows(), cols);
  PORTOLAN_CHECK(static_cast<int64_t>(weight.size()) == cols);
  ForRows(x.rows(), cols, [&](int64_t i) {
    const RowTarget target = TargetRow(act, i);
    float* y = y_f32 == nullptr ? target.f32 : y_f32 + i * cols;
    table_.rms_norm(x.Row(i).data(), weight.data(), cols, eps, y, target.bf16);
    if (target.f32 != nullptr && y != target.f32) {
      std::memcpy(target.f32, y, static_cast<size_t>(cols) * sizeof(float));
    }
    ClearPadding(act, i);
  });
}

void Kernels::AddRmsNorm(MatrixView<float> hidden,
                         MatrixView<const float> delta,
                         std::span<const float> weight, float eps,
                         const ActivationView& act, float* y_f32) {
  const int64_t cols = hidden.cols();
  PORTOLAN_CHECK(delta.rows() == hidden.rows() && delta.cols() == cols);
  CheckShape(act, hidden.rows(), cols);
  PORTOLAN_CHECK(static_cast<int64_t>(weight.size()) == cols);
  ForRows(hidden.rows(), cols, [&](int64_t i) {
    float* x = hidden.Row(i).data();
    table_.add(x, delta.Row(i).data(), cols);
    const RowTarget target = TargetRow(act, i);
    float* y = y_f32 == nullptr ? target.f32 : y_f32 + i * cols;
    table_.rms_norm(x, weight.data(), cols, eps, y, target.bf16);
    if (target.f32 != nullptr && y != target.f32) {
      std::memcpy(target.f32, y, static_cast<size_t>(cols) * sizeof(float));
    }
    ClearPadding(act, i);
  });
}

void Kernels::HeadNormRope(MatrixView<float> heads, int head_dim,
                           std::span<const float> norm_weight, float eps,
                           const RopeTable& rope,
                           std::span<const int32_t> positions) {
  PORTOLAN_CHECK(heads.cols() % head_dim == 0);
  PORTOLAN_CHECK(static_cast<int64_t>(positions.size()) == heads.rows());
  PORTOLAN_CHECK(rope.rotary_dim() <= head_dim);
  PORTOLAN_CHECK(norm_weight.empty() ||
                 norm_weight.size() == static_cast<size_t>(head_dim));
  ForRows(heads.rows(), heads.cols(), [&](int64_t i) {
    const int64_t position = positions[static_cast<size_t>(i)];
    PORTOLAN_CHECK(position >= 0 && position < rope.num_positions());
    float* head = heads.Row(i).data();
    for (const float* end = head + heads.cols(); head < end; head += head_dim) {
      if (!norm_weight.empty()) {
        table_.rms_norm(head, norm_weight.data(), head_dim, eps, head, nullptr);
      }
      table_.rotate(head, rope.Cos(position), rope.Sin(position),
                    rope.rotary_dim() / 2);
    }
  });
}

void Kernels::AppendKv(const KvLayout& layout,
                       std::span<const Sequence> sequences,
                       MatrixView<const float> k, MatrixView<const float> v) {
  const int64_t dim = layout.head_dim;
  const int64_t cols = layout.num_kv_heads * dim;
  PORTOLAN_CHECK(k.cols() == cols && v.cols() == cols);
  const auto append = [&]<typename T>(T*, std::byte* page, int64_t token,
                                      int64_t row) {
    const auto put = [](float x) {
      if constexpr (sizeof(T) == 2)
        return ToBf16(x);
      else
        return x;
    };
    for (int64_t head = 0; head < layout.num_kv_heads; ++head) {
      T* to_k = reinterpret_cast<T*>(page) + head * layout.HeadElements();
      T* to_v = to_k + layout.KElements();
      const float* from_k = k.Row(row).data() + head * dim;
      const float* from_v = v.Row(row).data() + head * dim;
      for (int64_t d = 0; d < dim; ++d) {
        to_k[layout.KIndex(token, d)] = put(from_k[d]);
        to_v[layout.VIndex(token, d)] = put(from_v[d]);
      }
    }
  };
  for (const Sequence& sequence : sequences) {
    ForRows(sequence.num_rows, 2 * cols, [&](int64_t i) {
      const int64_t position = sequence.first_position + i;
      std::byte* page = sequence.pages[position / kPageTokens];
      const int64_t row = sequence.first_row + i;
      if (layout.dtype == ActivationDtype::kBf16) {
        append(static_cast<Bf16*>(nullptr), page, position % kPageTokens, row);
      } else {
        append(static_cast<float*>(nullptr), page, position % kPageTokens, row);
      }
    });
  }
}

absl::Status Kernels::ReserveAttention(const KvLayout& layout, int num_heads,
                                       int64_t positions) {
  return attention_->Reserve(layout, num_heads, positions);
}

void Kernels::Attention(const KvLayout& layout,
                        std::span<const Sequence> sequences,
                        const ActivationView& q, int num_heads, float scale,
                        int64_t window, const ActivationView& out) {
  PORTOLAN_CHECK(num_heads % layout.num_kv_heads == 0);
  PORTOLAN_CHECK(q.cols == int64_t{num_heads} * layout.head_dim);
  PORTOLAN_CHECK(q.dtype == layout.dtype);
  CheckShape(out, out.rows, q.cols);
  attention_->Run({.layout = &layout,
                   .q = &q,
                   .out = &out,
                   .num_heads = num_heads,
                   .scale = scale,
                   .window = window},
                  sequences);
  for (const Sequence& sequence : sequences) {
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      ClearPadding(out, sequence.first_row + i);
    }
  }
}

void Kernels::Round(MatrixView<const float> x, const ActivationView& out) {
  CheckShape(out, x.rows(), x.cols());
  ForRows(x.rows(), x.cols(), [&](int64_t i) {
    const RowTarget target = TargetRow(out, i);
    if (target.f32 != nullptr) {
      std::memcpy(target.f32, x.Row(i).data(),
                  static_cast<size_t>(x.cols()) * sizeof(float));
    } else {
      table_.round(x.Row(i).data(), x.cols(), target.bf16);
    }
    ClearPadding(out, i);
  });
}

void Kernels::Softmax(MatrixView<float> rows) {
  ForRows(rows.rows(), rows.cols(),
          [&](int64_t i) { table_.softmax(rows.Row(i).data(), rows.cols()); });
}

void Kernels::Sigmoid(MatrixView<float> rows) {
  ForRows(rows.rows(), rows.cols(),
          [&](int64_t i) { table_.sigmoid(rows.Row(i).data(), rows.cols()); });
}

}  // namespace portolan

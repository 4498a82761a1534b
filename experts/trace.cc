#include "experts/trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/hash64.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr std::string_view kMagic = "PTLTRACE";
constexpr uint32_t kVersion = 2;
// Had the fingerprint where the numerics id is now.
constexpr uint32_t kOldVersion = 1;
constexpr uint32_t kHeaderBlock = 1;
constexpr uint32_t kEmbeddingBlock = 2;
constexpr uint32_t kStepBlock = 3;

struct BlockHead {
  uint32_t kind;
  uint32_t bytes;
  uint64_t checksum;
};

// Bounds of what a sound trace can hold, so that products below stay far from
// overflow.
constexpr int32_t kMaxLayers = 1 << 12;
constexpr int32_t kMaxExperts = 1 << 16;
constexpr int32_t kMaxHidden = 1 << 20;
constexpr int64_t kMaxExpertsInAll = 1 << 20;  // of all layers
constexpr int32_t kMaxRanks = 1 << 16;
constexpr int64_t kMaxExpertBytes = int64_t{1} << 36;
constexpr int64_t kMaxMemoryBytes = kMaxExpertBytes * kMaxExpertsInAll;

size_t Count(int64_t rows, int64_t cols) {
  return static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

void Encode(const TraceHeader& header, ByteWriter& out) {
  out.Put(kVersion);
  out.Put(header.num_layers);
  out.Put(header.num_experts);
  out.Put(header.top_k);
  out.Put(header.hidden);
  out.Put(header.lookahead);
  out.Put(header.num_ranks);
  out.Put(header.expert_bytes);
  out.Put(header.expert_memory_bytes);
  out.Put(header.numerics_id);
  out.Put(header.fingerprint);
  out.Put(header.link_bytes_per_second);
  out.Put(header.link_latency_s);
  out.PutString(header.model);
  out.PutString(header.policy);
}

// Of a part of a step, or of a link: what is longer was not measured, and times
// of a replay stay finite.
constexpr double kMaxSeconds = 1e6;

bool IsTime(double seconds) { return seconds >= 0 && seconds <= kMaxSeconds; }

// 0: not throttled.
bool IsBandwidth(double bytes_per_second) {
  return bytes_per_second == 0 ||
         (bytes_per_second >= 1 && std::isfinite(bytes_per_second));
}

bool IsSane(const TraceHeader& h) {
  return h.num_layers > 0 && h.num_layers <= kMaxLayers && h.num_experts > 0 &&
         h.num_experts <= kMaxExperts &&
         int64_t{h.num_layers} * h.num_experts <= kMaxExpertsInAll &&
         h.top_k > 0 && h.top_k <= h.num_experts && h.hidden >= 0 &&
         h.hidden <= kMaxHidden && h.lookahead >= 0 && h.lookahead <= 2 &&
         h.num_ranks > 0 && h.num_ranks <= kMaxRanks && h.expert_bytes > 0 &&
         h.expert_bytes <= kMaxExpertBytes && h.expert_memory_bytes >= 0 &&
         h.expert_memory_bytes <= kMaxMemoryBytes &&
         IsBandwidth(h.link_bytes_per_second) && IsTime(h.link_latency_s);
}

absl::StatusOr<TraceHeader> DecodeHeader(ByteReader in) {
  const auto version = in.Get<uint32_t>();
  if (version != kVersion && version != kOldVersion) {
    return absl::DataLossError(absl::StrCat("trace version ", version,
                                            ", this program reads version ",
                                            kVersion, ": record it again"));
  }
  TraceHeader header;
  header.num_layers = in.Get<int32_t>();
  header.num_experts = in.Get<int32_t>();
  header.top_k = in.Get<int32_t>();
  header.hidden = in.Get<int32_t>();
  header.lookahead = in.Get<int32_t>();
  header.num_ranks = in.Get<int32_t>();
  header.expert_bytes = in.Get<int64_t>();
  header.expert_memory_bytes = in.Get<int64_t>();
  if (version != kOldVersion) header.numerics_id = in.Get<uint64_t>();
  header.fingerprint = in.Get<uint64_t>();
  header.link_bytes_per_second = in.Get<double>();
  header.link_latency_s = in.Get<double>();
  header.model = in.GetString();
  header.policy = in.GetString();
  if (!in.ok() || !IsSane(header)) {
    return absl::DataLossError("the header holds no possible shape");
  }
  return header;
}

// Step payload: i64 step, f32 tail_s, u32 slices, u32 tokens, slices {i64
// sequence, i32 rank, i32 first position, i32 tokens}, i32 token ids, f16
// contexts, then per layer: f32 gate_s, f32 experts_s, f16 probabilities, f16
// look-ahead at +1 and +2 (as far as header and layer have them), u16 experts,
// f16 weights.
void Encode(const TraceStep& step, ByteWriter& out) {
  out.Put(step.step);
  out.Put(step.tail_s);
  out.Put(static_cast<uint32_t>(step.slices.size()));
  out.Put(static_cast<uint32_t>(step.token_ids.size()));
  for (const TraceSlice& slice : step.slices) {
    out.Put(slice.sequence);
    out.Put(slice.rank);
    out.Put(slice.first_position);
    out.Put(slice.num_tokens);
  }
  out.PutArray(std::span(step.token_ids));
  out.PutArray(std::span(step.contexts));
  for (const TraceLayer& layer : step.layers) {
    out.Put(layer.gate_s);
    out.Put(layer.experts_s);
    out.PutArray(std::span(layer.probabilities));
    out.PutArray(std::span(layer.ahead1));
    out.PutArray(std::span(layer.ahead2));
    out.PutArray(std::span(layer.experts));
    out.PutArray(std::span(layer.weights));
  }
}

// Gates ahead of `layer` that a step holds.
bool HasAhead(const TraceHeader& header, int32_t layer, int32_t ahead) {
  return header.lookahead >= ahead && layer + ahead < header.num_layers;
}

TraceLayer DecodeLayer(const TraceHeader& header, int32_t index,
                       uint32_t num_tokens, ByteReader& in) {
  const size_t scores = Count(num_tokens, header.num_experts);
  const size_t choices = Count(num_tokens, header.top_k);
  TraceLayer layer;
  layer.gate_s = in.Get<float>();
  layer.experts_s = in.Get<float>();
  layer.probabilities = in.GetArray<Fp16>(scores);
  if (HasAhead(header, index, 1)) layer.ahead1 = in.GetArray<Fp16>(scores);
  if (HasAhead(header, index, 2)) layer.ahead2 = in.GetArray<Fp16>(scores);
  layer.experts = in.GetArray<uint16_t>(choices);
  layer.weights = in.GetArray<Fp16>(choices);
  return layer;
}

bool IsSane(const TraceHeader& header, const TraceStep& step) {
  int64_t tokens = 0;
  for (const TraceSlice& slice : step.slices) {
    if (slice.num_tokens <= 0 || slice.rank < 0 ||
        slice.rank >= header.num_ranks || slice.first_position < 0) {
      return false;
    }
    tokens += slice.num_tokens;
  }
  if (tokens != step.num_tokens() || !IsTime(step.tail_s)) return false;
  if (std::ranges::any_of(step.token_ids, [](int32_t id) { return id < 0; })) {
    return false;
  }
  return std::ranges::all_of(step.layers, [&](const TraceLayer& layer) {
    return IsTime(layer.gate_s) && IsTime(layer.experts_s) &&
           std::ranges::all_of(layer.experts, [&](uint16_t expert) {
             return expert < header.num_experts;
           });
  });
}

absl::StatusOr<TraceStep> DecodeStep(const TraceHeader& header, ByteReader in) {
  TraceStep step;
  step.step = in.Get<int64_t>();
  step.tail_s = in.Get<float>();
  const auto num_slices = in.Get<uint32_t>();
  const auto num_tokens = in.Get<uint32_t>();
  for (uint32_t i = 0; i < num_slices && in.ok(); ++i) {
    TraceSlice slice;
    slice.sequence = in.Get<int64_t>();
    slice.rank = in.Get<int32_t>();
    slice.first_position = in.Get<int32_t>();
    slice.num_tokens = in.Get<int32_t>();
    if (in.ok()) step.slices.push_back(slice);
  }
  step.token_ids = in.GetArray<int32_t>(num_tokens);
  step.contexts = in.GetArray<Fp16>(Count(num_slices, header.hidden));
  for (int32_t i = 0; i < header.num_layers && in.ok(); ++i) {
    step.layers.push_back(DecodeLayer(header, i, num_tokens, in));
  }
  if (!in.ok() || in.remaining() != 0 || !IsSane(header, step)) {
    return absl::DataLossError("a step that does not fit the header");
  }
  return step;
}

absl::Status DecodeEmbeddings(ByteReader in, Trace& trace) {
  const auto count = in.Get<uint32_t>();
  const auto ids = in.GetArray<int32_t>(count);
  for (const int32_t id : ids) {
    trace.embeddings[id] =
        in.GetArray<Fp16>(static_cast<size_t>(trace.header.hidden));
  }
  if (!in.ok() || in.remaining() != 0) {
    return absl::DataLossError("embedding rows that do not fit the header");
  }
  return absl::OkStatus();
}

absl::Status DecodeBlock(uint32_t kind, ByteReader payload, Trace& trace) {
  switch (kind) {
    case kEmbeddingBlock:
      return DecodeEmbeddings(payload, trace);
    case kStepBlock: {
      PORTOLAN_ASSIGN_OR_RETURN(TraceStep step,
                                DecodeStep(trace.header, payload));
      trace.steps.push_back(std::move(step));
      return absl::OkStatus();
    }
    default:
      return absl::DataLossError(absl::StrCat("a block of kind ", kind));
  }
}

absl::Status At(size_t offset, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("offset ", offset, ": ", status.message()));
}

// The payload of the block at the front of `in`; ok() false if it is torn: cut
// short, or the last one and not what its checksum says, as a writer whose
// machine died leaves it. kDataLoss if others follow one with a wrong checksum.
absl::StatusOr<std::span<const std::byte>> TakeBlock(ByteReader& in,
                                                     uint32_t& kind) {
  kind = in.Get<uint32_t>();
  const auto bytes = in.Get<uint32_t>();
  const auto checksum = in.Get<uint64_t>();
  const auto payload = in.Take(bytes);
  if (!in.ok() || Hash64(payload, kind) == checksum) return payload;
  if (in.remaining() > 0) {
    return absl::DataLossError(
        "a block is damaged (checksum), and others follow it: record the trace "
        "anew, or cut the file there");
  }
  in.Take(1);
  return payload;
}

bool WriteAll(int file, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

TraceWriter::TraceWriter(std::string path, int file, const TraceHeader& header)
    : path_(std::move(path)), file_(file), header_(header) {}

TraceWriter::~TraceWriter() {
  if (file_ >= 0) close(file_);
}

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Create(
    std::string path, const TraceHeader& header) {
  PORTOLAN_CHECK(IsSane(header));
  const int file =
      open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot create the trace ", path));
  }
  auto writer = std::unique_ptr<TraceWriter>(
      new TraceWriter(std::move(path), file, header));
  if (!WriteAll(file, std::as_bytes(std::span(kMagic)))) {
    return writer->GiveUp("cannot write the trace", errno);
  }
  static_assert(kMagic.size() == kMagicBytes);
  writer->size_ = kMagicBytes;
  Encode(header, writer->payload_);
  PORTOLAN_RETURN_IF_ERROR(writer->WriteBlock(kHeaderBlock));
  return writer;
}

absl::Status TraceWriter::GiveUp(std::string_view what, int error) {
  // A torn block at the end is legal, so a failed cut does no harm.
  if (ftruncate(file_, size_) != 0) errno = 0;
  close(file_);
  file_ = -1;
  const std::string message =
      absl::StrCat(absl::string_view(what.data(), what.size()), " ", path_);
  return absl::ErrnoToStatus(
      error, has_header() ? absl::StrCat(message, " after ", size_,
                                         " bytes; recording ends here, the "
                                         "run goes on")
                          : message);
}

absl::Status TraceWriter::WriteBlock(uint32_t kind) {
  const auto payload = payload_.bytes();
  if (payload.size() > UINT32_MAX) {
    return GiveUp("a block of 4 GiB or more does not fit into the trace",
                  EFBIG);
  }
  const BlockHead head{.kind = kind,
                       .bytes = static_cast<uint32_t>(payload.size()),
                       .checksum = Hash64(payload, kind)};
  block_.resize(sizeof(head) + payload.size());
  std::memcpy(block_.data(), &head, sizeof(head));
  std::memcpy(block_.data() + sizeof(head), payload.data(), payload.size());
  if (!WriteAll(file_, block_)) {
    return GiveUp(
        has_header() ? "cannot append to the trace" : "cannot write the trace",
        errno);
  }
  size_ += static_cast<int64_t>(block_.size());
  return absl::OkStatus();
}

void TraceWriter::CollectNewRows(const TraceStep& step,
                                 MatrixView<const float> embeddings) {
  new_ids_.clear();
  new_rows_.clear();
  for (size_t i = 0; i < step.token_ids.size(); ++i) {
    const auto id = static_cast<size_t>(step.token_ids[i]);
    if (id >= known_ids_.size()) known_ids_.resize(id + 1);
    if (known_ids_[id]) continue;
    known_ids_[id] = true;
    new_ids_.push_back(step.token_ids[i]);
    for (const float value : embeddings.Row(static_cast<int64_t>(i))) {
      new_rows_.push_back(ToFp16(value));
    }
  }
}

absl::Status TraceWriter::Append(const TraceStep& step,
                                 MatrixView<const float> embeddings) {
  if (file_ < 0) return absl::OkStatus();
  PORTOLAN_CHECK(std::ssize(step.layers) == header_.num_layers);
  PORTOLAN_CHECK(embeddings.rows() == step.num_tokens());
  CollectNewRows(step, embeddings);
  if (!new_ids_.empty()) {
    payload_.Clear();
    payload_.Put(static_cast<uint32_t>(new_ids_.size()));
    payload_.PutArray(std::span<const int32_t>(new_ids_));
    payload_.PutArray(std::span<const Fp16>(new_rows_));
    PORTOLAN_RETURN_IF_ERROR(WriteBlock(kEmbeddingBlock));
  }
  payload_.Clear();
  Encode(step, payload_);
  return WriteBlock(kStepBlock);
}

absl::StatusOr<Trace> ParseTrace(std::span<const std::byte> file) {
  const auto magic = std::as_bytes(std::span(kMagic));
  if (file.size() < magic.size() ||
      !std::equal(magic.begin(), magic.end(), file.begin())) {
    return absl::DataLossError("not a trace (it must begin with PTLTRACE)");
  }
  ByteReader in(file.subspan(magic.size()));
  uint32_t kind = 0;
  PORTOLAN_ASSIGN_OR_RETURN(const auto first, TakeBlock(in, kind));
  if (!in.ok() || kind != kHeaderBlock) {
    return absl::DataLossError("the trace's header is torn");
  }
  Trace trace;
  PORTOLAN_ASSIGN_OR_RETURN(trace.header, DecodeHeader(ByteReader(first)));
  size_t whole = in.remaining();
  while (in.remaining() > 0) {
    const auto payload = TakeBlock(in, kind);
    if (payload.ok() && !in.ok()) break;
    const absl::Status status =
        payload.ok() ? DecodeBlock(kind, ByteReader(*payload), trace)
                     : payload.status();
    if (!status.ok()) return At(file.size() - whole, status);
    whole = in.remaining();
  }
  trace.torn_bytes = in.ok() ? 0 : static_cast<int64_t>(whole);
  return trace;
}

absl::StatusOr<Trace> ReadTrace(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot open the trace ", path));
  }
  std::vector<char> bytes(
      static_cast<size_t>(std::max<std::streamoff>(0, in.tellg())));
  in.seekg(0);
  in.read(bytes.data(), std::ssize(bytes));
  // A file that grows or shrinks meanwhile: what was read counts.
  bytes.resize(static_cast<size_t>(in.gcount()));
  absl::StatusOr<Trace> trace = ParseTrace(std::as_bytes(std::span(bytes)));
  if (!trace.ok()) {
    return absl::Status(trace.status().code(),
                        absl::StrCat(path, ": ", trace.status().message()));
  }
  return trace;
}

}  // namespace portolan

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "experts/byte_codec.h"
#include "runtime/base/fp16.h"
#include "runtime/base/matrix_view.h"

namespace portolan {

// A recording of what the gates said: everything that decides which experts a
// run needed and when, so that a policy can be tried without the model.
//
// File: the 8 bytes "PTLTRACE", then blocks {u32 kind, u32 payload bytes, u64
// Hash64(payload, kind)} + payload, little-endian:
//   kind 1  header (TraceHeader; first, once)
//   kind 2  embedding rows of token ids that come up for the first time:
//           u32 count, i32 ids[count], f16 rows[count, hidden]
//   kind 3  one step of one rank (TraceStep; encoding in trace.cc)
// A block is written whole, so a file that is being written, or whose writer
// died, ends in at most one torn block, which readers leave out.
// Source: contracts.md section 5.
struct TraceHeader {
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t hidden = 0;     // of embedding rows and contexts
  int32_t lookahead = 0;  // gates ahead that were recorded: 0, 1, 2
  int32_t num_ranks = 1;
  int64_t expert_bytes = 0;         // a slot
  int64_t expert_memory_bytes = 0;  // the budget of a rank in force
  // Of the run: what its ranks agreed on; 0 if the file is of version 1, which
  // has none. Runs of one model with unlike numerics route alike but for
  // rounding, so a history and a plan ask for the fingerprint alone.
  uint64_t numerics_id = 0;
  uint64_t fingerprint = 0;          // of the model
  double link_bytes_per_second = 0;  // 0: not throttled
  double link_latency_s = 0;
  std::string model = {};   // as given to --model
  std::string policy = {};  // as given to --policy
};

// The tokens of one sequence in a step.
struct TraceSlice {
  int64_t sequence = 0;
  int32_t rank = 0;  // that served the sequence
  int32_t first_position = 0;
  int32_t num_tokens = 0;
};

// Rows run over the tokens of the step, slice by slice.
struct TraceLayer {
  std::vector<Fp16> probabilities = {};  // [num_tokens, num_experts]
  std::vector<Fp16> ahead1 = {};         // likewise; empty if not recorded
  std::vector<Fp16> ahead2 = {};
  std::vector<uint16_t> experts = {};  // [num_tokens, top_k]
  std::vector<Fp16> weights = {};      // [num_tokens, top_k]
  // Time of the layer without waiting for experts: up to the gate's choice, and
  // from there on.
  float gate_s = 0;
  float experts_s = 0;
};

struct TraceStep {
  int64_t step = 0;
  std::vector<TraceSlice> slices = {};
  std::vector<int32_t> token_ids = {};  // [num_tokens]
  std::vector<Fp16> contexts = {};  // [slices, hidden]; see sequence_context.h
  std::vector<TraceLayer> layers = {};  // [num_layers]
  float tail_s = 0;  // after the last layer: head, sampling, next batch

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

// Appends steps to a trace file. Thread-compatible.
class TraceWriter {
 public:
  // Creates or overwrites `path` and writes the header.
  // Errors: as open() and write() say, naming the file: nothing is recorded.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(
      std::string path, const TraceHeader& header);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // Appends a step whose shapes fit the header. `embeddings`: the embedding
  // layer's output for its tokens, [num_tokens, hidden].
  //
  // The first error of the file (disk full, ...) is returned once, naming it;
  // the file is cut back to its last whole block and recording is over: later
  // calls do nothing and return OK, for no run fails because of its trace.
  absl::Status Append(const TraceStep& step,
                      MatrixView<const float> embeddings);

 private:
  TraceWriter(std::string path, int file, const TraceHeader& header);

  absl::Status WriteBlock(uint32_t kind);  // of payload_
  absl::Status GiveUp(std::string_view what, int error);
  bool has_header() const { return size_ > kMagicBytes; }
  void CollectNewRows(const TraceStep& step,
                      MatrixView<const float> embeddings);

  static constexpr int64_t kMagicBytes = 8;

  const std::string path_;
  int file_;  // -1 once given up
  const TraceHeader header_;
  int64_t size_ = 0;  // of whole blocks
  ByteWriter payload_;
  std::vector<std::byte> block_;
  std::vector<bool> known_ids_;
  std::vector<int32_t> new_ids_;
  std::vector<Fp16> new_rows_;
};

struct Trace {
  TraceHeader header = {};
  absl::flat_hash_map<int32_t, std::vector<Fp16>> embeddings = {};  // by id
  std::vector<TraceStep> steps = {};
  // Bytes at the end that are no whole, sound block; 0 in a finished file.
  int64_t torn_bytes = 0;
};

// Errors: kDataLoss naming the offset if the bytes are no trace, of another
// version, or a sound block holds what cannot be (a shape that does not fit).
absl::StatusOr<Trace> ParseTrace(std::span<const std::byte> file);

// As ParseTrace(), naming the file; kNotFound or as open() says.
absl::StatusOr<Trace> ReadTrace(const std::string& path);

}  // namespace portolan

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "experts/expert_map_store.h"
#include "experts/history_record.h"
#include "experts/mixer.h"
#include "experts/token_table.h"
#include "experts/trace.h"

namespace portolan {

struct HistoryShape {
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t hidden = 0;
  uint64_t fingerprint = 0;   // of the model whose gates are remembered
  int32_t iterations = 1000;  // maps of single tokens
  int32_t sequences = 1000;   // maps of whole sequences
  int32_t token_ids = 16384;
  int32_t distance = 3;  // that fMoE reads ahead: weighs its redundancy
  MapFormat format = MapFormat::kExact;
  MapReplacement replacement = MapReplacement::kSimilarity;
};

// Records of a store of maps that a user may ask for.
inline constexpr int32_t kMaxHistoryCapacity = 10'000'000;

// Bytes of the stores of such a history.
int64_t HistoryBytes(const HistoryShape& shape);

// Token ids worth remembering for a model of this shape: 16384, or what takes
// 64 MiB.
int32_t TokenTableCapacity(int32_t num_layers, int32_t num_experts);

// Whether this process may take the memory of such a history. Errors:
// kResourceExhausted saying what is wanted, what is there and what to lower.
absl::Status CheckHistoryFits(const HistoryShape& shape);

HistoryShape HistoryShapeOf(const TraceHeader& header, int32_t distance = 3);

// Whether a trace, which the error calls `trace`, was recorded of the model
// whose gates the history remembers: else its experts are others. Errors:
// kFailedPrecondition naming the odd field and the remedy.
absl::Status CheckSameModel(std::string_view trace, const TraceHeader& header,
                            const HistoryShape& shape);

// What earlier requests taught about a model's gates: expert maps of
// iterations and of whole sequences, two token tables, how popular each expert
// is, and the weights of the prediction sources. Predictors read it and learn
// into it; a copy is a snapshot.
//
// Thread-compatible. Memory: HistoryBytes(), allocated at construction.
class History {
 public:
  explicit History(const HistoryShape& shape);

  const HistoryShape& shape() const { return shape_; }

  ExpertMapStore& iterations() { return iterations_; }
  ExpertMapStore& sequences() { return sequences_; }
  TokenTable& tokens() { return tokens_; }
  // Where the token after a token id went.
  TokenTable& followers() { return followers_; }

  // Share of tokens that chose each expert, aged by kPopularityRate with every
  // token: [num_layers, num_experts].
  static constexpr float kPopularityRate = 0.002f;
  std::span<float> popularity() { return popularity_; }
  std::span<const float> popularity() const { return popularity_; }

  // How much each expert was used: its mean share over the stored sequences,
  // each counting the same however old; popularity() while there are none.
  std::vector<float> UseProfile() const;

  // Learns what another rank or job learnt, as if its tokens had come here.
  // `shared_id`: what the others call the record, to say that it was of use.
  void Learn(const SequenceRecord& record, uint64_t shared_id = 0);
  void Learn(const IterationRecord& record, uint64_t shared_id = 0);
  RecordShape record_shape() const {
    return {.num_layers = shape_.num_layers,
            .num_experts = shape_.num_experts,
            .top_k = shape_.top_k,
            .hidden = shape_.hidden};
  }

  // Of the adaptive predictor: by context, then layer.
  std::vector<Mixer>& mixers() { return mixers_; }

  // Writes by way of a ReplacingFile: a reader finds the old file or the new
  // one, never half of one, and of two writers the last one stays. Errors:
  // naming the file.
  absl::Status Save(const std::string& path) const;

  // Replaces the content. A compact history takes an exact file too. Errors,
  // after which nothing has changed: kNotFound; kDataLoss naming the file if it
  // is damaged or of another version; kFailedPrecondition if it belongs to
  // another model, or is compact where this history is exact.
  absl::Status Load(const std::string& path);

  // As the file, without it: what the coordinator keeps and hands out.
  std::string Serialize() const;
  absl::Status Parse(std::string_view bytes);

 private:
  // What follows the header.
  bool ParseBody(ByteReader& in, MapFormat format);

  HistoryShape shape_;
  ExpertMapStore iterations_;
  ExpertMapStore sequences_;
  TokenTable tokens_;
  TokenTable followers_;
  std::vector<float> popularity_;
  std::vector<Mixer> mixers_;
};

}  // namespace portolan

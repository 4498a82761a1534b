#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "experts/byte_codec.h"
#include "experts/hash64.h"
#include "experts/trace.h"
#include "tests/synthetic_trace.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string TestPath(std::string_view name) {
  return testing::TempDir() + "portolan_trace_" + std::string(name);
}

std::vector<float> EmbeddingsOf(const Trace& trace, const TraceStep& step) {
  std::vector<float> rows;
  for (const int32_t id : step.token_ids) {
    for (const Fp16 value : trace.embeddings.at(id)) {
      rows.push_back(ToFloat(value));
    }
  }
  return rows;
}

absl::Status Append(TraceWriter& writer, const Trace& trace,
                    const TraceStep& step) {
  const std::vector<float> rows = EmbeddingsOf(trace, step);
  return writer.Append(step,
                       {rows, step.num_tokens(), int64_t{trace.header.hidden}});
}

std::string WriteTrace(const Trace& trace, std::string_view name) {
  const std::string path = TestPath(name);
  auto writer = TraceWriter::Create(path, trace.header);
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (const TraceStep& step : trace.steps) {
    EXPECT_TRUE(Append(**writer, trace, step).ok());
  }
  return path;
}

std::string ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void ExpectSame(const TraceStep& a, const TraceStep& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.contexts, b.contexts);
  EXPECT_EQ(a.tail_s, b.tail_s);
  ASSERT_EQ(a.slices.size(), b.slices.size());
  EXPECT_EQ(a.slices[0].sequence, b.slices[0].sequence);
  EXPECT_EQ(a.slices[0].num_tokens, b.slices[0].num_tokens);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].probabilities, b.layers[i].probabilities);
    EXPECT_EQ(a.layers[i].ahead1, b.layers[i].ahead1);
    EXPECT_EQ(a.layers[i].ahead2, b.layers[i].ahead2);
    EXPECT_EQ(a.layers[i].experts, b.layers[i].experts);
    EXPECT_EQ(a.layers[i].weights, b.layers[i].weights);
    EXPECT_EQ(a.layers[i].gate_s, b.layers[i].gate_s);
    EXPECT_EQ(a.layers[i].experts_s, b.layers[i].experts_s);
  }
}

TEST(TraceTest, AFileOfVersionOneHasAFingerprintAndNoNumericsId) {
  const Trace written = SyntheticTrace({.num_steps = 2});
  std::string file = ReadBytes(WriteTrace(written, "old"));
  // Magic, {kind, bytes, checksum}, then version, six sizes, two of memory.
  constexpr size_t kBegin = 8 + 16;
  uint32_t bytes = 0;
  std::memcpy(&bytes, file.data() + 8 + 4, sizeof(bytes));
  std::string header = file.substr(kBegin, bytes);
  header[0] = 1;
  header.erase(4 + 6 * 4 + 2 * 8, 8);
  const auto length = static_cast<uint32_t>(header.size());
  const uint64_t sum = Hash64(Bytes(header), 1);
  std::memcpy(file.data() + 8 + 4, &length, sizeof(length));
  std::memcpy(file.data() + 8 + 8, &sum, sizeof(sum));
  file.replace(kBegin, bytes, header);

  const auto read = ParseTrace(Bytes(file));

  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->header.fingerprint, written.header.fingerprint);
  EXPECT_EQ(read->header.numerics_id, 0u);
  EXPECT_EQ(read->steps.size(), 2u);
}

TEST(TraceTest, ReadsBackWhatWasWritten) {
  const Trace written = SyntheticTrace({.num_steps = 50});

  const auto read = ReadTrace(WriteTrace(written, "round_trip"));

  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->torn_bytes, 0);
  EXPECT_EQ(read->header.expert_bytes, written.header.expert_bytes);
  EXPECT_EQ(read->header.numerics_id, written.header.numerics_id);
  EXPECT_EQ(read->header.fingerprint, written.header.fingerprint);
  ASSERT_EQ(read->steps.size(), written.steps.size());
  for (size_t i = 0; i < read->steps.size(); ++i) {
    ExpectSame(read->steps[i], written.steps[i]);
    for (const int32_t id : read->steps[i].token_ids) {
      EXPECT_EQ(read->embeddings.at(id), written.embeddings.at(id));
    }
  }
}

TEST(TraceTest, ATornTailLosesOnlyTheTornBlock) {
  const Trace written = SyntheticTrace({.num_steps = 5, .vocab = 2});
  const std::string bytes = ReadBytes(WriteTrace(written, "torn"));

  for (const size_t cut : {1, 10, 100}) {
    const std::string torn = bytes.substr(0, bytes.size() - cut);
    const auto read = ParseTrace(Bytes(torn));

    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->steps.size(), 4u) << cut;
    EXPECT_GT(read->torn_bytes, 0);
  }
}

TEST(TraceTest, ADamagedBlockInTheMiddleIsNamedByItsOffset) {
  const Trace written = SyntheticTrace({.num_steps = 5, .vocab = 2});
  const std::string path = WriteTrace(written, "damaged_in_the_middle");
  std::string bytes = ReadBytes(path);

  bytes[bytes.size() / 2] ^= 1;
  const auto read = ParseTrace(Bytes(bytes));

  EXPECT_TRUE(absl::IsDataLoss(read.status())) << read.status();
  EXPECT_THAT(read.status().message(), HasSubstr("offset "));
  EXPECT_THAT(read.status().message(), HasSubstr("cut the file there"));
}

TEST(TraceTest, ADamagedLastBlockEndsTheTraceBeforeIt) {
  const Trace written = SyntheticTrace({.num_steps = 5, .vocab = 2});
  std::string bytes = ReadBytes(WriteTrace(written, "damaged"));

  bytes[bytes.size() - 20] ^= 1;
  const auto read = ParseTrace(Bytes(bytes));

  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->steps.size(), 4u);
  EXPECT_GT(read->torn_bytes, 0);
}

TEST(TraceTest, CanBeReadWhileItIsWritten) {
  const Trace source = SyntheticTrace({.num_steps = 3});
  const std::string path = TestPath("growing");
  auto writer = TraceWriter::Create(path, source.header);
  ASSERT_TRUE(writer.ok());

  for (size_t steps = 0; steps < 3; ++steps) {
    EXPECT_EQ(ReadTrace(path)->steps.size(), steps);
    ASSERT_TRUE(Append(**writer, source, source.steps[steps]).ok());
  }
}

TEST(TraceTest, ATraceThatCannotBeginIsNamedAndPromisesNothing) {
  const Trace source = SyntheticTrace({.num_steps = 3});

  // /dev/full refuses every write with ENOSPC.
  const auto writer = TraceWriter::Create("/dev/full", source.header);

  EXPECT_TRUE(absl::IsResourceExhausted(writer.status())) << writer.status();
  EXPECT_THAT(writer.status().message(),
              HasSubstr("cannot write the trace /dev/full"));
  EXPECT_THAT(writer.status().message(), Not(HasSubstr("goes on")));
}

TEST(TraceTest, RecordingEndsAtTheFirstErrorAndLaterStepsAreDropped) {
  const Trace source = SyntheticTrace({.num_steps = 3});
  const std::string path = TestPath("limited");
  auto writer = TraceWriter::Create(path, source.header);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(Append(**writer, source, source.steps[0]).ok());

  // The file may not grow any more.
  const auto size = static_cast<rlim_t>(ReadBytes(path).size());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit limit{.rlim_cur = size + 10, .rlim_max = old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status first = Append(**writer, source, source.steps[1]);
  const absl::Status second = Append(**writer, source, source.steps[2]);
  setrlimit(RLIMIT_FSIZE, &old);

  EXPECT_FALSE(first.ok());
  EXPECT_THAT(first.message(), HasSubstr(path));
  EXPECT_THAT(first.message(), HasSubstr("the run goes on"));
  EXPECT_TRUE(second.ok());
  const auto read = ReadTrace(path);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->steps.size(), 1u);
}

// Endless computing would put the times of a replay out of range.
TEST(TraceTest, ATimeThatNobodyMeasuredIsDamage) {
  for (const float seconds : {-1.0f, 1e30f, std::nanf("")}) {
    Trace written = SyntheticTrace({.num_steps = 2, .vocab = 2});
    written.steps[1].layers[0].gate_s = seconds;

    const auto read = ReadTrace(WriteTrace(written, "times"));

    EXPECT_TRUE(absl::IsDataLoss(read.status())) << seconds;
  }
}

// The header alone, with the checksum that belongs to it.
std::string WithHeader(const TraceHeader& header, std::string_view name) {
  const TraceHeader sound = SyntheticHeader();
  const std::string path = TestPath(name);
  EXPECT_TRUE(TraceWriter::Create(path, sound).ok());
  std::string bytes = ReadBytes(path);
  constexpr size_t kPayload = 8 + 16;  // magic, head of the block
  constexpr size_t kVersion = 4;
  ByteWriter fields;
  fields.Put(header.num_layers);
  fields.Put(header.num_experts);
  fields.Put(header.top_k);
  fields.Put(header.hidden);
  fields.Put(header.lookahead);
  fields.Put(header.num_ranks);
  fields.Put(header.expert_bytes);
  fields.Put(header.expert_memory_bytes);
  std::memcpy(bytes.data() + kPayload + kVersion, fields.bytes().data(),
              fields.bytes().size());
  const uint64_t sum = Hash64(Bytes(bytes).subspan(kPayload), 1);
  std::memcpy(bytes.data() + kPayload - sizeof(sum), &sum, sizeof(sum));
  return bytes;
}

TEST(TraceTest, AShapeThatNoModelHasIsDamage) {
  const TraceHeader sound = SyntheticHeader();
  TraceHeader wide = sound;
  wide.num_layers = 1 << 12;
  wide.num_experts = 1 << 16;
  TraceHeader huge = sound;
  huge.expert_bytes = (int64_t{1} << 36) + 1;
  TraceHeader endless = sound;
  endless.expert_bytes = std::numeric_limits<int64_t>::max();
  TraceHeader crowded = sound;
  crowded.num_ranks = std::numeric_limits<int32_t>::max();
  TraceHeader rich = sound;
  rich.expert_memory_bytes = std::numeric_limits<int64_t>::max();

  for (const TraceHeader& header : {wide, huge, endless, crowded, rich}) {
    const auto read = ParseTrace(Bytes(WithHeader(header, "shape")));

    EXPECT_TRUE(absl::IsDataLoss(read.status())) << read.status();
  }
  EXPECT_TRUE(ParseTrace(Bytes(WithHeader(sound, "shape"))).ok());
}

TEST(TraceTest, NamesWhatIsNoTrace) {
  const std::string path = TestPath("none");
  std::ofstream(path) << "this is not a trace";

  EXPECT_TRUE(absl::IsDataLoss(ReadTrace(path).status()));
  EXPECT_THAT(ReadTrace(path).status().message(), HasSubstr(path));
  EXPECT_TRUE(absl::IsNotFound(ReadTrace("/does/not/exist").status()));
}

}  // namespace
}  // namespace portolan

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/model/checkpoint/safetensors.h"
#include "tests/checkpoint_files.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string MessageOf(const absl::Status& status) {
  return std::string(status.message());
}

// What opening a model.safetensors of this content says.
absl::Status OpenFile(const std::string& content) {
  const TempDir dir;
  dir.Write("model.safetensors", content);
  return Checkpoint::Open(dir.path()).status();
}

// Likewise, of this header over `data_bytes` of data.
absl::Status OpenHeader(const std::string& header, size_t data_bytes) {
  return OpenFile(SafetensorsText(header, std::string(data_bytes, 'x')));
}

std::string Entry(const std::string& name, const std::string& shape, int begin,
                  int end) {
  return absl::StrCat("\"", name, R"(": {"dtype": "F32", "shape": )", shape,
                      R"(, "data_offsets": [)", begin, ", ", end, "]}");
}

// A header of these entries.
std::string Header(const std::vector<std::string>& entries) {
  return absl::StrCat("{", absl::StrJoin(entries, ","), "}");
}

TEST(CheckpointTest, FindsTensorsOfASingleFile) {
  const TempDir dir;
  dir.Write("model.safetensors",
            SafetensorsFile({{"b", "F32", {2}, "abcdefgh"},
                             {"a", "BF16", {1, 2}, "ijkl"}}));

  const auto checkpoint = Checkpoint::Open(dir.path());

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto a = (*checkpoint)->Get("a", {1, 2});
  ASSERT_TRUE(a.ok()) << a.status();
  std::string bytes(2, '\0');
  ASSERT_TRUE((*checkpoint)
                  ->Read(**a, 2, std::as_writable_bytes(std::span(bytes)),
                         ReadPurpose::kDense)
                  .ok());
  EXPECT_EQ(bytes, "kl");
  EXPECT_EQ((*checkpoint)->Find("c"), nullptr);
}

TEST(CheckpointTest, FindsTensorsOfAllShards) {
  const TempDir dir;
  dir.Write("model-1.safetensors",
            SafetensorsFile({{"a", "F32", {1}, "aaaa"}}));
  dir.Write("model-2.safetensors",
            SafetensorsFile({{"b", "F32", {1}, "bbbb"}}));
  dir.Write("model.safetensors.index.json",
            R"({"weight_map": {"a": "model-1.safetensors",
                               "b": "model-2.safetensors"}})");

  const auto checkpoint = Checkpoint::Open(dir.path());

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorExtent extent =
      (*checkpoint)->ExtentOf(*(*checkpoint)->Find("b"));
  EXPECT_EQ(extent.file, dir.File("model-2.safetensors"));
  std::string bytes(4, '\0');
  ASSERT_TRUE((*checkpoint)
                  ->Read(extent, std::as_writable_bytes(std::span(bytes)),
                         ReadPurpose::kExpert)
                  .ok());
  EXPECT_EQ(bytes, "bbbb");
}

TEST(CheckpointTest, OpensTheBundledModel) {
  const auto checkpoint =
      Checkpoint::Open(PORTOLAN_SOURCE_DIR "/models/tiny-moe");

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE(
      (*checkpoint)->Get("model.embed_tokens.weight", {4096, 192}).ok());
}

TEST(CheckpointTest, CountsBytesByPurpose) {
  const TempDir dir;
  dir.Write("model.safetensors",
            SafetensorsFile({{"a", "F32", {2}, "01234567"}}));
  std::vector<uint64_t> offsets;
  const auto checkpoint =
      Checkpoint::Open(dir.path(), [&](const TensorExtent& range, ReadPurpose) {
        offsets.push_back(range.offset);
      });
  ASSERT_TRUE(checkpoint.ok());
  const TensorInfo& a = *(*checkpoint)->Find("a");
  std::vector<std::byte> out(3);

  ASSERT_TRUE((*checkpoint)->Read(a, 1, out, ReadPurpose::kDense).ok());
  ASSERT_TRUE((*checkpoint)->Read(a, 5, out, ReadPurpose::kExpert).ok());

  EXPECT_EQ((*checkpoint)->bytes_read().dense, 3u);
  EXPECT_EQ((*checkpoint)->bytes_read().expert, 3u);
  EXPECT_EQ((*checkpoint)->bytes_read().metadata, 0u);
  EXPECT_THAT(offsets, ElementsAre(a.offset + 1, a.offset + 5));
}

TEST(CheckpointTest, AMissingTensorNamesTheFileSearched) {
  const TempDir dir;
  const std::string file = dir.Write(
      "model.safetensors", SafetensorsFile(std::vector<TestTensor>{}));

  const auto checkpoint = Checkpoint::Open(dir.path());

  const absl::Status got =
      (*checkpoint)->Get("model.norm.weight", {4}).status();
  EXPECT_TRUE(absl::IsNotFound(got));
  EXPECT_THAT(MessageOf(got),
              AllOf(HasSubstr("model.norm.weight"), HasSubstr(file)));
}

TEST(CheckpointTest, AWrongShapeNamesWantedAndFound) {
  const TempDir dir;
  dir.Write("model.safetensors", SafetensorsFile({{"a", "F32", {1}, "aaaa"}}));

  const auto checkpoint = Checkpoint::Open(dir.path());

  EXPECT_THAT(MessageOf((*checkpoint)->Get("a", {2, 3}).status()),
              AllOf(HasSubstr("tensor a"), HasSubstr("wanted shape [2, 3]"),
                    HasSubstr("found [1]")));
}

TEST(CheckpointTest, AnotherDtypeIsRefusedOnlyWhereItIsUsed) {
  const TempDir dir;
  dir.Write("model.safetensors", SafetensorsFile({{"a", "I8", {4}, "aaaa"}}));

  const auto checkpoint = Checkpoint::Open(dir.path());

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const absl::Status got = (*checkpoint)->Get("a", {4}).status();
  EXPECT_TRUE(absl::IsUnimplemented(got));
  EXPECT_THAT(MessageOf(got), AllOf(HasSubstr("tensor a"), HasSubstr("I8"),
                                    HasSubstr("BF16, F16, F32")));
}

TEST(CheckpointTest, AFileThatShrinksWhileOpenIsAnError) {
  const TempDir dir;
  const std::string file = dir.Write(
      "model.safetensors", SafetensorsFile({{"a", "F32", {1}, "aaaa"}}));
  const auto checkpoint = Checkpoint::Open(dir.path());
  std::filesystem::resize_file(file, 20);

  std::vector<std::byte> out(4);
  const absl::Status read =
      (*checkpoint)
          ->Read(*(*checkpoint)->Find("a"), 0, out, ReadPurpose::kDense);

  EXPECT_TRUE(absl::IsDataLoss(read));
  EXPECT_THAT(MessageOf(read), AllOf(HasSubstr("tensor a"), HasSubstr(file),
                                     HasSubstr("offset")));
}

TEST(CheckpointTest, ADirectoryWithoutWeightsIsRefused) {
  const TempDir dir;

  const absl::Status opened = Checkpoint::Open(dir.path()).status();

  EXPECT_TRUE(absl::IsNotFound(opened));
  EXPECT_THAT(MessageOf(opened), HasSubstr("model.safetensors.index.json"));
}

TEST(CheckpointTest, AFifoIsRefusedWithoutWaiting) {
  const TempDir dir;
  ASSERT_EQ(::mkfifo(dir.File("model.safetensors").c_str(), 0600), 0);

  EXPECT_THAT(MessageOf(Checkpoint::Open(dir.path()).status()),
              HasSubstr("not a regular file"));
}

TEST(SafetensorsHeaderTest, EveryPrefixOfAFileIsAnError) {
  const std::string file =
      SafetensorsFile({{"a", "F32", {2}, "01234567"}, {"b", "F16", {1}, "89"}});
  ASSERT_TRUE(OpenFile(file).ok());

  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_FALSE(OpenFile(file.substr(0, length)).ok()) << length;
  }
  EXPECT_FALSE(OpenFile(file + "x").ok());
}

TEST(SafetensorsHeaderTest, AHugeHeaderLengthIsNotAllocated) {
  EXPECT_THAT(MessageOf(OpenFile(std::string(8, '\xff') + "{}")),
              HasSubstr("18446744073709551615"));
  EXPECT_TRUE(
      absl::IsDataLoss(OpenFile(std::string("\0\0\0\1\0\0\0\0{}", 10))));
}

TEST(SafetensorsHeaderTest, OffsetsBehindTheEndNameTensorAndOffset) {
  const absl::Status opened = OpenHeader(Header({Entry("t", "[2]", 0, 8)}), 4);

  EXPECT_TRUE(absl::IsDataLoss(opened));
  EXPECT_THAT(MessageOf(opened),
              AllOf(HasSubstr("tensor t"), HasSubstr("0 to 8")));
}

TEST(SafetensorsHeaderTest, NegativeAndBackwardOffsetsAreRefused) {
  EXPECT_THAT(MessageOf(OpenHeader(Header({Entry("t", "[1]", -4, 0)}), 4)),
              HasSubstr("two numbers >= 0"));
  EXPECT_THAT(MessageOf(OpenHeader(Header({Entry("t", "[1]", 4, 0)}), 4)),
              HasSubstr("backwards"));
}

TEST(SafetensorsHeaderTest, ShapesThatOverflowOrDoNotFitAreRefused) {
  const std::string overflow = "[4294967296, 4294967296]";
  EXPECT_THAT(MessageOf(OpenHeader(Header({Entry("t", overflow, 0, 4)}), 4)),
              HasSubstr("larger than any file"));
  EXPECT_THAT(MessageOf(OpenHeader(Header({Entry("t", "[3]", 0, 4)}), 4)),
              HasSubstr("takes 12"));
  for (const char* shape :
       {"[-1]", "[1.0]", "[\"1\"]", "4", "[9223372036854775808]", "{}"}) {
    EXPECT_THAT(MessageOf(OpenHeader(Header({Entry("t", shape, 0, 4)}), 4)),
                HasSubstr("tensor t"))
        << shape;
  }
}

TEST(SafetensorsHeaderTest, GapsAndOverlapsNameTensorAndOffset) {
  EXPECT_THAT(
      MessageOf(OpenHeader(
          Header({Entry("a", "[1]", 0, 4), Entry("b", "[1]", 8, 12)}), 12)),
      AllOf(HasSubstr("tensor b"), HasSubstr("gap")));
  EXPECT_THAT(
      MessageOf(OpenHeader(
          Header({Entry("a", "[2]", 0, 8), Entry("b", "[1]", 4, 8)}), 8)),
      AllOf(HasSubstr("tensor b"), HasSubstr("overlaps")));
}

TEST(SafetensorsHeaderTest, ANameThatOccursTwiceIsRefused) {
  EXPECT_THAT(
      MessageOf(OpenHeader(
          Header({Entry("a", "[1]", 0, 4), Entry("a", "[1]", 4, 8)}), 8)),
      HasSubstr("\"a\" occurs twice"));
}

TEST(SafetensorsHeaderTest, AnEntryOfAnotherKindIsRefusedByName) {
  for (const char* entry :
       {"1", "{}", R"({"dtype": "F32"})", R"({"dtype": 1, "shape": [1]})",
        R"({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]})",
        R"({"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]})"}) {
    EXPECT_THAT(MessageOf(OpenHeader(absl::StrCat("{\"t\": ", entry, "}"), 4)),
                HasSubstr("tensor t"))
        << entry;
  }
}

TEST(SafetensorsHeaderTest, EmptyTensorsAndScalarsAreFine) {
  EXPECT_TRUE(
      OpenHeader(Header({Entry("e", "[0, 7]", 0, 0), Entry("s", "[]", 0, 4)}),
                 4)
          .ok());
}

TEST(SafetensorsIndexTest, AMissingShardIsNamed) {
  const TempDir dir;
  dir.Write("model.safetensors.index.json",
            R"({"weight_map": {"a": "model-1.safetensors"}})");

  const absl::Status opened = Checkpoint::Open(dir.path()).status();

  EXPECT_TRUE(absl::IsNotFound(opened));
  EXPECT_THAT(MessageOf(opened),
              AllOf(HasSubstr("model-1.safetensors"), HasSubstr("index.json")));
}

TEST(SafetensorsIndexTest, ATensorThatItsShardLacksIsNamed) {
  const TempDir dir;
  dir.Write("s.safetensors", SafetensorsFile({{"a", "F32", {1}, "aaaa"}}));
  dir.Write("model.safetensors.index.json",
            R"({"weight_map": {"b": "s.safetensors"}})");

  EXPECT_THAT(MessageOf(Checkpoint::Open(dir.path()).status()),
              AllOf(HasSubstr("tensor b"), HasSubstr("s.safetensors")));
}

TEST(SafetensorsIndexTest, ATensorIsTakenFromTheShardThatTheIndexNames) {
  const TempDir dir;
  dir.Write("1.safetensors", SafetensorsFile({{"a", "F32", {1}, "1111"},
                                              {"b", "F32", {1}, "bbbb"}}));
  dir.Write("2.safetensors", SafetensorsFile({{"a", "F32", {1}, "2222"}}));
  dir.Write("model.safetensors.index.json",
            R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})");

  const auto checkpoint = Checkpoint::Open(dir.path());

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->ExtentOf(*(*checkpoint)->Find("a")).file,
            dir.File("2.safetensors"));
}

TEST(SafetensorsIndexTest, AShardOutsideTheDirectoryIsRefused) {
  for (const char* shard :
       {"../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "."}) {
    const auto index = ParseSafetensorsIndex(
        "i.json", absl::StrCat(R"({"weight_map": {"t": ")", shard, "\"}}"));
    EXPECT_THAT(MessageOf(index.status()),
                AllOf(HasSubstr("i.json"), HasSubstr("tensor t")))
        << shard;
  }
  EXPECT_FALSE(
      ParseSafetensorsIndex("i", R"({"weight_map": {"t": "a\u0000b"}})").ok());
  EXPECT_FALSE(ParseSafetensorsIndex("i", R"({"weight_map": {"t": 1}})").ok());
  EXPECT_FALSE(ParseSafetensorsIndex("i", "{}").ok());
}

}  // namespace
}  // namespace portolan

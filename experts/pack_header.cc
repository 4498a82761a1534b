#include "experts/pack_header.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experts/direct_file.h"
#include "experts/hash64.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr uint32_t kVersion = 1;
constexpr std::array<char, 8> kMagic = {'P', 'O', 'R', 'T', 'P', 'A', 'C', 'K'};

// The header's bytes as they lie in the file.
struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t format;  // a WeightFormat
  uint64_t records_begin;
  uint64_t fingerprint;
  std::array<char, 64> numerics;  // zero-padded
  int32_t num_layers;
  int32_t num_experts;
  int64_t hidden;
  int64_t intermediate;
  int64_t slot_bytes;
  uint64_t table_hash;
  uint64_t header_hash;  // of all fields above
};
static_assert(sizeof(Header) == 144);
static_assert(std::is_trivially_copyable_v<Header>);

uint64_t HashOf(const Header& header) {
  return Hash64({reinterpret_cast<const std::byte*>(&header),
                 offsetof(Header, header_hash)});
}

size_t NumRecords(const PackIdentity& identity) {
  return static_cast<size_t>(identity.num_layers) *
         static_cast<size_t>(identity.num_experts);
}

Header HeaderOf(const PackIdentity& identity) {
  Header header{};
  header.magic = kMagic;
  header.version = kVersion;
  header.format = static_cast<uint32_t>(identity.format);
  header.records_begin = PackRecordsBegin(identity);
  header.fingerprint = identity.fingerprint;
  PORTOLAN_CHECK(identity.numerics.size() < header.numerics.size());
  std::ranges::copy(identity.numerics, header.numerics.begin());
  header.num_layers = identity.num_layers;
  header.num_experts = identity.num_experts;
  header.hidden = identity.shape.hidden;
  header.intermediate = identity.shape.intermediate;
  header.slot_bytes = identity.slot_bytes;
  return header;
}

// Says what is wrong with the pack file `path` of which `format` is wanted.
struct Fault {
  const std::string& path;
  WeightFormat format;

  absl::Status Damaged(std::string_view what) const {
    return absl::DataLossError(absl::StrCat("expert pack ", path,
                                            " is damaged: ", std::string(what),
                                            PackRemedy(format)));
  }

  absl::Status Stale(std::string_view field, const std::string& found,
                     const std::string& wanted) const {
    return absl::FailedPreconditionError(absl::StrCat(
        "expert pack ", path, " is stale: its ", std::string(field), " is ",
        found, ", the model's ", wanted, PackRemedy(format)));
  }
};

std::string FormatText(uint32_t format) {
  return format > static_cast<uint32_t>(WeightFormat::kInt4)
             ? absl::StrCat("number ", format)
             : std::string(WeightFormatName(static_cast<WeightFormat>(format)));
}

// Compares what a reader needs to understand the rest, field by field.
absl::Status CheckFresh(const Fault& fault, const Header& found,
                        const Header& wanted) {
  if (found.fingerprint != wanted.fingerprint) {
    return fault.Stale("model fingerprint",
                       absl::StrFormat("%016x", found.fingerprint),
                       absl::StrFormat("%016x", wanted.fingerprint));
  }
  if (found.format != wanted.format) {
    return absl::FailedPreconditionError(absl::StrCat(
        "expert pack ", fault.path, " is stale: its weight format is ",
        FormatText(found.format), ", wanted is ", FormatText(wanted.format),
        PackRemedy(fault.format)));
  }
  if (found.numerics != wanted.numerics) {
    const auto text = [](const Header& header) {
      return std::string(header.numerics.data(),
                         strnlen(header.numerics.data(), 64));
    };
    return fault.Stale("numerics", text(found), text(wanted));
  }
  const auto shape = [](const Header& h) {
    return absl::StrCat(h.num_layers, " layers of ", h.num_experts,
                        " experts of ", h.hidden, " x ", h.intermediate, " in ",
                        h.slot_bytes, " bytes");
  };
  if (shape(found) != shape(wanted)) {
    return fault.Stale("shape", shape(found), shape(wanted));
  }
  return absl::OkStatus();
}

}  // namespace

std::string PackRemedy(WeightFormat format) {
  const std::string flag =
      format == WeightFormat::kBf16
          ? ""
          : absl::StrCat(" --quantize ", std::string(WeightFormatName(format)));
  return absl::StrCat("; run portolan pack", flag,
                      " again, or delete the file");
}

uint64_t PackRecordsBegin(const PackIdentity& identity) {
  return kDirectAlignment + AlignUp(NumRecords(identity) * sizeof(uint64_t));
}

std::vector<std::byte> EncodePackHeader(const PackIdentity& identity,
                                        std::span<const uint64_t> hashes) {
  PORTOLAN_CHECK(hashes.size() == NumRecords(identity));
  Header header = HeaderOf(identity);
  header.table_hash = Hash64(std::as_bytes(hashes), identity.fingerprint);
  header.header_hash = HashOf(header);
  std::vector<std::byte> bytes(PackRecordsBegin(identity));
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + kDirectAlignment, hashes.data(),
              hashes.size_bytes());
  return bytes;
}

absl::StatusOr<std::vector<uint64_t>> DecodePackHeader(
    const std::string& path, std::span<const std::byte> head,
    const PackIdentity& expected) {
  const Fault fault{path, expected.format};
  Header found{};
  if (head.size() < sizeof(found)) return fault.Damaged("it has no header");
  std::memcpy(&found, head.data(), sizeof(found));
  if (found.magic != kMagic) return fault.Damaged("it is no expert pack");
  if (found.version != kVersion) {
    return fault.Stale("format version", absl::StrCat(found.version),
                       absl::StrCat(kVersion));
  }
  if (found.header_hash != HashOf(found)) {
    return fault.Damaged("the hash of its header is wrong");
  }
  if (absl::Status fresh = CheckFresh(fault, found, HeaderOf(expected));
      !fresh.ok()) {
    return fresh;
  }
  std::vector<uint64_t> hashes(NumRecords(expected));
  const std::span<const std::byte> table =
      head.subspan(std::min<size_t>(head.size(), kDirectAlignment));
  const size_t table_bytes = hashes.size() * sizeof(uint64_t);
  if (table.size() < table_bytes) return fault.Damaged("it is truncated");
  std::memcpy(hashes.data(), table.data(), table_bytes);
  if (Hash64(std::as_bytes(std::span(hashes)), expected.fingerprint) !=
      found.table_hash) {
    return fault.Damaged("the hash of its table is wrong");
  }
  return hashes;
}

}  // namespace portolan

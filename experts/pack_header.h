#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/expert_pack.h"

namespace portolan {

// Header and table of a pack file as its first bytes; expert_pack.h has the
// layout. Pure.

// "; run portolan pack --quantize int8 again, or delete the file": what ends
// the message about a pack that is of no use.
std::string PackRemedy(WeightFormat format);

// Bytes before the first record.
uint64_t PackRecordsBegin(const PackIdentity& identity);

// hashes: [layers, experts]. The result has PackRecordsBegin() bytes.
std::vector<std::byte> EncodePackHeader(const PackIdentity& identity,
                                        std::span<const uint64_t> hashes);

// Inverse; returns the hashes. `head` is the start of the file, at least
// PackRecordsBegin(expected) bytes unless the file is shorter.
// Errors: as PackFormat::Open(), naming `path`.
absl::StatusOr<std::vector<uint64_t>> DecodePackHeader(
    const std::string& path, std::span<const std::byte> head,
    const PackIdentity& expected);

}  // namespace portolan

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "comm/transport.h"

namespace portolan {

// One value on which all ranks must agree before they compute together.
struct AgreedField {
  absl::string_view name;  // "--format"
  uint64_t value = 0;
  absl::string_view remedy;  // "give every rank the same --format"
  // The value as the user wrote or knows it: "jsonl". Empty where `value` is a
  // digest of more than a line says. A long one is cut.
  std::string text = {};
};

// Decides who is odd. values[r] is rank r's; the most frequent value is right,
// on a tie the one that the lowest rank holds. Returns the ranks with another
// value, in order. Pure.
std::vector<Rank> FindOddRanks(std::span<const uint64_t> values);

// Compares `fields` over all ranks. Collective; every rank passes the same
// fields in the same order.
// Errors: kFailedPrecondition, IsOfAllRanks(), naming the first field that
// differs, the odd ranks with their hosts and both texts; as Transport.
absl::Status Agree(Transport& transport, std::span<const AgreedField> fields,
                   absl::Duration timeout);

// Marks an error that every rank of the world has, unless it has lost another
// one meanwhile: one rank may tell it for all.
absl::Status OfAllRanks(absl::Status status);
bool IsOfAllRanks(const absl::Status& status);

// A 64-bit digest of bytes, the same on every machine (FNV-1a), to be chained:
// Digest(more, Digest(some)). Not for adversaries.
uint64_t Digest(std::span<const std::byte> bytes,
                uint64_t seed = 0xcbf29ce484222325u);

}  // namespace portolan

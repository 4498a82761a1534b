#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace portolan {

// The alphabet of byte-level BPE: each byte is written as one printable
// character, so that vocabularies are plain text (GPT-2's encoder,
// bytes_to_unicode). Printable Latin-1 stands for itself, the 68 other bytes
// for U+0100 onwards in order. Thread-safe.

// Appends the characters of `bytes`.
void AppendByteAlphabet(std::string_view bytes, std::string& out);

// The byte that `code` stands for, or nullopt.
std::optional<uint8_t> ByteOfAlphabet(char32_t code);

}  // namespace portolan

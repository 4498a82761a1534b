#include "runtime/model/tokenizer/byte_alphabet.h"

#include <array>

#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

struct Alphabet {
  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (size_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) ||
                             (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t code = printable ? static_cast<char32_t>(byte) : next++;
      AppendUtf8(code, characters[byte]);
      bytes[code] = static_cast<int16_t>(byte);
    }
  }

  std::array<std::string, 256> characters;
  std::array<int16_t, 256 + 68> bytes;  // by code point; -1: none
};

const Alphabet& GetAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

void AppendByteAlphabet(std::string_view bytes, std::string& out) {
  const Alphabet& alphabet = GetAlphabet();
  for (const char byte : bytes) {
    out += alphabet.characters[static_cast<uint8_t>(byte)];
  }
}

std::optional<uint8_t> ByteOfAlphabet(char32_t code) {
  const Alphabet& alphabet = GetAlphabet();
  if (code >= alphabet.bytes.size() || alphabet.bytes[code] < 0) {
    return std::nullopt;
  }
  return static_cast<uint8_t>(alphabet.bytes[code]);
}

}  // namespace portolan

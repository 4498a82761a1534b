#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace portolan {

// What the tokenizer needs of Unicode; properties and normal forms are ICU's.
// "text" is valid UTF-8 wherever the name says nothing else, and offsets are
// bytes. All functions are thread-safe.

struct Utf8Char {
  char32_t code;
  size_t num_bytes;
};

// The character of `text` that begins at byte `at` < text.size().
Utf8Char CharAt(std::string_view text, size_t at);

void AppendUtf8(char32_t code, std::string& out);

// The code points of `text`.
std::u32string ToCodePoints(std::string_view text);

// Offset of the first byte that is no part of valid UTF-8 (RFC 3629: no
// surrogates, no overlong forms), or nullopt.
std::optional<size_t> FindInvalidUtf8(std::string_view bytes);

// Property White_Space.
bool IsWhiteSpace(char32_t code);
// General category N*.
bool IsNumeric(char32_t code);
// General category P*, or ASCII punctuation and symbols.
bool IsPunctuation(char32_t code);
// \w of UTS 18: Alphabetic, M*, Nd, Pc, Join_Control.
bool IsWordCharacter(char32_t code);
// General category Mn.
bool IsNonspacingMark(char32_t code);

// Appends the lower case of one character, whatever stands around it.
void AppendLowerCase(char32_t code, std::string& out);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` has less than 2^31 bytes.
std::string ToNormalForm(NormalForm form, std::string_view text);

// Makes valid UTF-8 of any bytes, one at a time: each maximal part of a broken
// sequence becomes one U+FFFD (Unicode 15, section 3.9, and Rust's
// from_utf8_lossy).
//
// Thread-compatible.
class Utf8Repair {
 public:
  // Appends what is certain after `byte`: nothing, or whole characters.
  void Push(uint8_t byte, std::string& out);

  // Appends U+FFFD if a sequence is unfinished, and starts anew.
  void Finish(std::string& out);

 private:
  std::array<char, 4> pending_{};
  size_t num_pending_ = 0;
};

}  // namespace portolan

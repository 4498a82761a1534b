#include "runtime/model/tokenizer/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>

#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

uint8_t Byte(char c) { return static_cast<uint8_t>(c); }

// Length of the sequence that `lead` begins; 0 if it can begin none.
size_t SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  if (lead < 0xE0) return 2;
  return lead < 0xF0 ? 3 : 4;
}

// Whether `byte` may follow the first `size` bytes of a sequence. The second
// byte's range excludes overlong forms, surrogates and what is past U+10FFFF.
bool MayFollow(uint8_t lead, size_t size, uint8_t byte) {
  if (size > 1) return byte >= 0x80 && byte <= 0xBF;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return byte >= low && byte <= high;
}

UChar32 Code(char32_t code) { return static_cast<UChar32>(code); }

bool HasCategory(char32_t code, uint32_t mask) {
  return (U_GET_GC_MASK(Code(code)) & mask) != 0;
}

const icu::Normalizer2& GetNormalizer(NormalForm form) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = nullptr;
  switch (form) {
    case NormalForm::kNfc:
      normalizer = icu::Normalizer2::getNFCInstance(error);
      break;
    case NormalForm::kNfd:
      normalizer = icu::Normalizer2::getNFDInstance(error);
      break;
    case NormalForm::kNfkc:
      normalizer = icu::Normalizer2::getNFKCInstance(error);
      break;
    case NormalForm::kNfkd:
      normalizer = icu::Normalizer2::getNFKDInstance(error);
      break;
  }
  PORTOLAN_CHECK(U_SUCCESS(error) && normalizer != nullptr);
  return *normalizer;
}

}  // namespace

Utf8Char CharAt(std::string_view text, size_t at) {
  const uint8_t lead = Byte(text[at]);
  if (lead < 0x80) return {lead, 1};
  const size_t length = SequenceLength(lead);
  char32_t code = lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    code = (code << 6) | (Byte(text[at + i]) & 0x3Fu);
  }
  return {code, length};
}

void AppendUtf8(char32_t code, std::string& out) {
  const auto continuation = [&](int shift) {
    out.push_back(static_cast<char>(0x80u | ((code >> shift) & 0x3Fu)));
  };
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out.push_back(static_cast<char>(0xC0u | (code >> 6)));
    continuation(0);
  } else if (code < 0x10000) {
    out.push_back(static_cast<char>(0xE0u | (code >> 12)));
    continuation(6);
    continuation(0);
  } else {
    out.push_back(static_cast<char>(0xF0u | (code >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

std::u32string ToCodePoints(std::string_view text) {
  std::u32string codes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = CharAt(text, at);
    codes.push_back(c.code);
    at += c.num_bytes;
  }
  return codes;
}

std::optional<size_t> FindInvalidUtf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const uint8_t lead = Byte(bytes[at]);
    const size_t length = SequenceLength(lead);
    if (length == 0 || length > bytes.size() - at) return at;
    for (size_t i = 1; i < length; ++i) {
      if (!MayFollow(lead, i, Byte(bytes[at + i]))) return at;
    }
    at += length;
  }
  return std::nullopt;
}

bool IsWhiteSpace(char32_t code) { return u_isUWhiteSpace(Code(code)) != 0; }

bool IsNumeric(char32_t code) { return HasCategory(code, U_GC_N_MASK); }

bool IsPunctuation(char32_t code) {
  if (code < 0x80) return u_isgraph(Code(code)) && !u_isalnum(Code(code));
  return HasCategory(code, U_GC_P_MASK);
}

bool IsWordCharacter(char32_t code) {
  return HasCategory(code, U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK) ||
         u_isUAlphabetic(Code(code)) ||
         u_hasBinaryProperty(Code(code), UCHAR_JOIN_CONTROL);
}

bool IsNonspacingMark(char32_t code) { return HasCategory(code, U_GC_MN_MASK); }

void AppendLowerCase(char32_t code, std::string& out) {
  // The one unconditional lower case of two characters in SpecialCasing.txt.
  constexpr char32_t kCapitalIWithDot = 0x130;
  if (code == kCapitalIWithDot) {
    out += "i\u0307";
  } else {
    AppendUtf8(static_cast<char32_t>(u_tolower(Code(code))), out);
  }
}

std::string ToNormalForm(NormalForm form, std::string_view text) {
  std::string normalized;
  normalized.reserve(text.size());
  icu::StringByteSink<std::string> sink(&normalized);
  UErrorCode error = U_ZERO_ERROR;
  GetNormalizer(form).normalizeUTF8(
      0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink,
      nullptr, error);
  PORTOLAN_CHECK(U_SUCCESS(error));
  return normalized;
}

void Utf8Repair::Push(uint8_t byte, std::string& out) {
  if (num_pending_ > 0) {
    const uint8_t lead = Byte(pending_[0]);
    if (MayFollow(lead, num_pending_, byte)) {
      pending_[num_pending_++] = static_cast<char>(byte);
      if (num_pending_ == SequenceLength(lead)) {
        out.append(pending_.data(), num_pending_);
        num_pending_ = 0;
      }
      return;
    }
    Finish(out);
  }
  const size_t length = SequenceLength(byte);
  if (length == 0) {
    out += kReplacement;
  } else if (length == 1) {
    out.push_back(static_cast<char>(byte));
  } else {
    pending_[0] = static_cast<char>(byte);
    num_pending_ = 1;
  }
}

void Utf8Repair::Finish(std::string& out) {
  if (num_pending_ > 0) out += kReplacement;
  num_pending_ = 0;
}

}  // namespace portolan

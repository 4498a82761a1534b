#include "runtime/model/tokenizer/sentencepiece_model.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "runtime/model/tokenizer/sentencepiece_module.h"

namespace portolan {
namespace {

// RTLD_DEEPBIND: the module's own protobuf goes before the program's. The
// sanitizers forbid it, and no program of theirs loads both.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PORTOLAN_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    defined(PORTOLAN_SANITIZED)
constexpr int kModuleFlags = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kModuleFlags = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

// The module lies in lib/ beside the folder of the program, in the build tree
// as where it is installed. Stays loaded. nullptr, and the reason in `error`,
// if it cannot be loaded.
NewSentencePieceProcessor* LoadModule(std::string& error) {
  std::error_code failed;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", failed);
  const auto path =
      program.parent_path().parent_path() / "lib" / "portolan_sentencepiece.so";
  void* const module = dlopen(path.c_str(), kModuleFlags);
  void* const symbol =
      module == nullptr ? nullptr : dlsym(module, kNewSentencePieceProcessor);
  if (symbol == nullptr) {
    const char* const reason = dlerror();
    error = absl::StrCat(
        reason == nullptr ? path.c_str() : reason,
        ": install Portolan whole (cmake --install), lib/ beside bin/");
  }
  return reinterpret_cast<NewSentencePieceProcessor*>(symbol);
}

}  // namespace

SentencePieceModel::SentencePieceModel() = default;

SentencePieceModel::~SentencePieceModel() = default;

std::string SentencePieceModel::Load(std::string_view contents) {
  static std::string* const error = new std::string;
  static NewSentencePieceProcessor* const make = LoadModule(*error);
  if (make == nullptr) return "SentencePiece: " + *error;
  processor_.reset(make());
  return processor_->Load(contents);
}

std::string SentencePieceModel::Encode(std::string_view text,
                                       std::vector<int32_t>& ids) const {
  return processor_->Encode(text, ids);
}

int32_t SentencePieceModel::num_pieces() const {
  return processor_->num_pieces();
}

const std::string& SentencePieceModel::Piece(int32_t id) const {
  return processor_->Piece(id);
}

SentencePieceModel::PieceKind SentencePieceModel::Kind(int32_t id) const {
  if (processor_->IsControl(id)) return PieceKind::kControl;
  if (processor_->IsUnknown(id)) return PieceKind::kUnknown;
  if (processor_->IsByte(id)) return PieceKind::kByte;
  return processor_->IsUnused(id) ? PieceKind::kUnused : PieceKind::kNormal;
}

int32_t SentencePieceModel::PieceToId(const std::string& piece) const {
  return processor_->PieceToId(piece);
}

int32_t SentencePieceModel::bos_id() const { return processor_->bos_id(); }

std::string SentencePieceModel::DecodePieces(
    const std::vector<std::string>& pieces) const {
  std::string text;
  return processor_->Decode(pieces, text).empty() ? text : "";
}

std::string SentencePieceModel::UnknownSurface() const {
  return DecodePieces({Piece(processor_->unk_id())});
}

// The flags lie in a message whose header is not installed, so the library is
// asked what it does to two pieces of nothing but a space. Without such a piece
// no text shows the difference between one dropped and all.
SentencePieceModel::LeadingSpace SentencePieceModel::leading_space() const {
  const std::string space = "\u2581";
  const int32_t space_id = PieceToId(space);
  if (Kind(space_id) == PieceKind::kNormal) {
    const std::string text = DecodePieces({space, space});
    if (text.empty()) return LeadingSpace::kAllDropped;
    return text == " " ? LeadingSpace::kOneDropped : LeadingSpace::kKept;
  }
  for (int32_t id = 0; id < num_pieces(); ++id) {
    if (Kind(id) != PieceKind::kNormal || !Piece(id).starts_with(space)) {
      continue;
    }
    return DecodePieces({Piece(id)}).starts_with(' ')
               ? LeadingSpace::kKept
               : LeadingSpace::kOneDropped;
  }
  return LeadingSpace::kKept;
}

}  // namespace portolan

#include "runtime/model/tokenizer/post_processor.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// Appends the ids of the template's token `name`.
absl::Status AppendTokenIds(const JsonField& item, const JsonField& tokens,
                            int32_t end_id, std::vector<int32_t>& out) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string name, item.GetString("id"));
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField token, tokens.Get(name));
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField ids, token.Get("ids"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            ids.Elements());
  for (const JsonField& element : elements) {
    PORTOLAN_ASSIGN_OR_RETURN(const int64_t id, element.AsInt(end_id));
    out.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::StatusOr<SpecialTokenFrame> ReadTemplate(const JsonField& field,
                                               int32_t end_id) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField single, field.Get("single"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> items,
                            single.Elements());
  SpecialTokenFrame frame;
  bool seen_text = false;
  for (const JsonField& item : items) {
    if (const auto special = item.Find("SpecialToken")) {
      PORTOLAN_ASSIGN_OR_RETURN(const JsonField tokens,
                                field.Get("special_tokens"));
      PORTOLAN_RETURN_IF_ERROR(AppendTokenIds(
          *special, tokens, end_id, seen_text ? frame.suffix : frame.prefix));
      continue;
    }
    PORTOLAN_ASSIGN_OR_RETURN(const JsonField sequence, item.Get("Sequence"));
    PORTOLAN_ASSIGN_OR_RETURN(const std::string id, sequence.GetString("id"));
    if (id != "A" || seen_text) {
      return item.Error("the sequence \"A\" must stand here exactly once");
    }
    seen_text = true;
  }
  if (!seen_text) return single.Error("the sequence \"A\" is missing");
  return frame;
}

absl::StatusOr<SpecialTokenFrame> ReadSequence(const JsonField& field,
                                               int32_t end_id) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField list, field.Get("processors"));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            list.Elements());
  SpecialTokenFrame frame;
  for (const JsonField& element : elements) {
    PORTOLAN_ASSIGN_OR_RETURN(const SpecialTokenFrame outer,
                              ReadPostProcessor(element, end_id));
    frame.prefix.insert(frame.prefix.begin(), outer.prefix.begin(),
                        outer.prefix.end());
    frame.suffix.insert(frame.suffix.end(), outer.suffix.begin(),
                        outer.suffix.end());
  }
  return frame;
}

}  // namespace

absl::StatusOr<SpecialTokenFrame> ReadPostProcessor(const JsonField& field,
                                                    int32_t end_id) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string type, field.GetString("type"));
  if (type == "ByteLevel") return SpecialTokenFrame();
  if (type == "TemplateProcessing") return ReadTemplate(field, end_id);
  if (type == "Sequence") return ReadSequence(field, end_id);
  return field.Error(
      absl::StrCat("the post-processor ", Quoted(type), " is not supported"));
}

}  // namespace portolan

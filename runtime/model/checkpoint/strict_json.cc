#include "runtime/model/checkpoint/strict_json.h"

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/random_access_file.h"

namespace portolan {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;

// Looks at the text without building anything; the first fault ends it.
class Validator : public json::json_sax_t {
 public:
  const std::string& fault() const { return fault_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(json::number_integer_t) override { return true; }
  bool number_unsigned(json::number_unsigned_t) override { return true; }
  bool number_float(json::number_float_t, const std::string&) override {
    return true;
  }
  bool string(std::string&) override { return true; }
  bool binary(json::binary_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(std::string& key) override {
    if (keys_.back().insert(key).second) return true;
    fault_ = absl::StrCat("\"", key, "\" occurs twice");
    return false;
  }

  bool parse_error(size_t byte, const std::string&,
                   const nlohmann::detail::exception& error) override {
    fault_ = absl::StrCat("not JSON at byte ", byte, ": ", error.what());
    return false;
  }

 private:
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaxDepth) return true;
    fault_ = absl::StrCat("nested deeper than ", kMaxDepth);
    return false;
  }

  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;
  std::string fault_;
};

}  // namespace

absl::StatusOr<json> ParseJsonObject(const std::string& file,
                                     std::string_view text) {
  Validator validator;
  if (!json::sax_parse(text.begin(), text.end(), &validator)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", validator.fault()));
  }
  json value = json::parse(text.begin(), text.end(), nullptr,
                           /*allow_exceptions=*/false);
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": wanted a JSON object, found ",
                     value.is_discarded() ? "nothing" : value.type_name()));
  }
  return value;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         size_t max_bytes) {
  PORTOLAN_ASSIGN_OR_RETURN(const RandomAccessFile file,
                            RandomAccessFile::Open(path));
  if (file.size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", file.size(), " bytes, at most ", max_bytes, " allowed"));
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  PORTOLAN_RETURN_IF_ERROR(
      file.Read(0, std::as_writable_bytes(std::span<char>(text))));
  return text;
}

}  // namespace portolan

#include "runtime/model/checkpoint/config_fields.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace portolan {
namespace {

using nlohmann::json;

// A value as a message shows it: short, whatever the file holds.
std::string Shown(const json& value) {
  constexpr size_t kMaxShown = 40;
  if (value.is_structured()) return absl::StrCat("an ", value.type_name());
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::ignore);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

}  // namespace

ConfigFields::ConfigFields(std::string file, const json& object)
    : file_(std::move(file)), object_(object) {}

bool ConfigFields::Has(const std::string& path) const {
  return Find(path) != nullptr;
}

int64_t ConfigFields::Int(const std::string& path, int64_t min, int64_t max) {
  const json* value = Find(path);
  if (value == nullptr) {
    Refuse(path, "missing");
    return min;
  }
  return ToInt(path, *value, min, max);
}

int64_t ConfigFields::IntOr(const std::string& path, int64_t fallback,
                            int64_t min, int64_t max) {
  const json* value = Find(path);
  return value == nullptr ? fallback : ToInt(path, *value, min, max);
}

double ConfigFields::NumberOr(const std::string& path, double fallback,
                              double min, double max) {
  const json* value = Find(path);
  if (value == nullptr) return fallback;
  const double number = value->is_number()
                            ? value->get<double>()
                            : std::numeric_limits<double>::quiet_NaN();
  if (number >= min && number <= max) return number;
  Refuse(path, absl::StrCat(Shown(*value), ", wanted a number from ", min,
                            " to ", max));
  return fallback;
}

bool ConfigFields::BoolOr(const std::string& path, bool fallback) {
  const json* value = Find(path);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Refuse(path, absl::StrCat(Shown(*value), ", wanted true or false"));
  return fallback;
}

std::string ConfigFields::StringOr(const std::string& path,
                                   const std::string& fallback) {
  const json* value = Find(path);
  if (value == nullptr) return std::string(fallback);
  if (value->is_string()) return value->get<std::string>();
  Refuse(path, absl::StrCat(Shown(*value), ", wanted a string"));
  return std::string(fallback);
}

std::vector<int64_t> ConfigFields::Ints(const std::string& path, int64_t min,
                                        int64_t max) {
  const json* value = Find(path);
  if (value == nullptr) return {};
  if (!value->is_array()) return {ToInt(path, *value, min, max)};
  std::vector<int64_t> ints;
  for (const json& item : *value) ints.push_back(ToInt(path, item, min, max));
  return ints;
}

std::vector<std::string> ConfigFields::Strings(const std::string& path) {
  const json* value = Find(path);
  if (value == nullptr) return {};
  std::vector<std::string> strings;
  bool ok = value->is_array();
  for (size_t i = 0; ok && i < value->size(); ++i) {
    ok = (*value)[i].is_string();
    if (ok) strings.push_back((*value)[i].get<std::string>());
  }
  if (!ok) {
    Refuse(path, absl::StrCat(Shown(*value), ", wanted an array of strings"));
  }
  return strings;
}

void ConfigFields::Refuse(const std::string& path, const std::string& why) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(
      absl::StrCat(file_, ": field ", path, ": ", why));
}

const json* ConfigFields::Find(const std::string& path) const {
  const json* value = &object_;
  for (absl::string_view part : absl::StrSplit(path, '.')) {
    if (!value->is_object()) return nullptr;
    const auto found = value->find(std::string(part));
    if (found == value->end() || found->is_null()) return nullptr;
    value = &*found;
  }
  return value;
}

int64_t ConfigFields::ToInt(const std::string& path, const json& value,
                            int64_t min, int64_t max) {
  const bool fits =
      value.is_number_unsigned()
          ? value.get<uint64_t>() <=
                static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
          : value.is_number_integer();
  if (fits) {
    const int64_t number = value.get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  Refuse(path, absl::StrCat(Shown(value), ", wanted an integer from ", min,
                            " to ", max));
  return min;
}

}  // namespace portolan

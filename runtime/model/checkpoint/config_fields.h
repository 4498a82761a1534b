#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace portolan {

// Reads typed fields of a JSON object and keeps the first fault, so that a
// family's reader is a plain list of its fields; status() is asked at the end.
// Until then a faulty field has its fallback or its smallest value.
//
// A field is named by its path, "rope_scaling.factor". A field that is null
// counts as absent. Bounds are inclusive.
class ConfigFields {
 public:
  // `file` is for messages; `object` must outlive this.
  ConfigFields(std::string file, const nlohmann::json& object);

  bool Has(const std::string& path) const;

  // Required.
  int64_t Int(const std::string& path, int64_t min, int64_t max);

  int64_t IntOr(const std::string& path, int64_t fallback, int64_t min,
                int64_t max);
  double NumberOr(const std::string& path, double fallback, double min,
                  double max);
  bool BoolOr(const std::string& path, bool fallback);
  std::string StringOr(const std::string& path, const std::string& fallback);
  // One integer or an array of them; absent: empty.
  std::vector<int64_t> Ints(const std::string& path, int64_t min, int64_t max);
  std::vector<std::string> Strings(const std::string& path);

  // Notes "FILE: field PATH: why", unless a fault was noted before.
  void Refuse(const std::string& path, const std::string& why);

  // kInvalidArgument with the first fault.
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json* Find(const std::string& path) const;
  int64_t ToInt(const std::string& path, const nlohmann::json& value,
                int64_t min, int64_t max);

  std::string file_;
  const nlohmann::json& object_;
  absl::Status status_;
};

}  // namespace portolan

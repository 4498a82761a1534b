#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace portolan {

enum class Role : uint8_t {
  kClient,  // its own requests
  kWorker,  // ranks attach with it
  kAdmin,   // everybody's requests
};

// Equal texts, in a time that tells nothing of where they differ.
bool ConstantTimeEqual(std::string_view a, std::string_view b);

// Who a bearer token is. Thread-compatible.
class AccessList {
 public:
  struct Entry {
    std::string name = {};
    Role role = Role::kClient;
    std::string token = {};
  };

  // Lines of "NAME ROLE TOKEN", where ROLE is client, worker or admin; empty
  // lines and those that begin with # are skipped. Names may repeat, for a
  // change of tokens.
  // Errors: kInvalidArgument naming `file` and line, and never the token.
  static absl::StatusOr<AccessList> Parse(std::string_view file,
                                          std::string_view text);

  void Add(Entry entry) { entries_.push_back(std::move(entry)); }
  bool empty() const { return entries_.empty(); }

  // The value of an authorization header. Every entry is compared, whichever
  // fits.
  // Errors: kUnauthenticated.
  absl::StatusOr<const Entry*> Find(std::string_view authorization) const;

 private:
  std::vector<Entry> entries_;
};

// How a call came in.
struct Credentials {
  std::string authorization = {};  // header; empty: none
  std::string subject = {};  // of a verified client certificate; empty: none
  std::string address = {};  // without the port
};

struct AccessRules {
  AccessList tokens = {};
  bool certificates = false;  // clients' certificates are verified (TLS)
  // Whose certificates are those of ranks: a subject with * for any text.
  // Empty: all.
  std::string worker_subject = {};
};

enum class ServiceKind : uint8_t { kInference, kControl };

struct Identity {
  std::string name = {};
  bool sees_all = true;
};

// Policy: who may call what. With tokens, clients need one, and ranks one or a
// certificate; with certificates alone, all need one. A certificate that is not
// one of a rank opens the ranks' services to nobody. Where there are neither,
// everybody may do everything and is known by its address.
// Errors: kUnauthenticated (nothing valid was shown), kPermissionDenied (valid,
// but of another role).
absl::StatusOr<Identity> Admit(const AccessRules& rules, ServiceKind service,
                               const Credentials& credentials);

// True if only processes of this machine can reach the address.
bool IsLoopback(std::string_view listen);

}  // namespace portolan

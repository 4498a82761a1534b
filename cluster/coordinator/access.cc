#include "cluster/coordinator/access.h"

#include <fnmatch.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace portolan {
namespace {

constexpr std::string_view kBearer = "Bearer ";
constexpr size_t kMinTokenBytes = 16;

std::optional<Role> ParseRole(const std::string& text) {
  if (text == "client") return Role::kClient;
  if (text == "worker") return Role::kWorker;
  if (text == "admin") return Role::kAdmin;
  return std::nullopt;
}

absl::Status BadLine(std::string_view file, int line, const char* what) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(file), ":", line, ": ", what));
}

bool IsWorkers(const AccessRules& rules, const std::string& subject) {
  return rules.worker_subject.empty() ||
         fnmatch(rules.worker_subject.c_str(), subject.c_str(), FNM_NOESCAPE) ==
             0;
}

bool Allows(Role role, ServiceKind service) {
  if (role == Role::kAdmin) return true;
  return (role == Role::kWorker) == (service == ServiceKind::kControl);
}

}  // namespace

bool ConstantTimeEqual(std::string_view a, std::string_view b) {
  // Runs over all of `a`, the text that came, whatever is in `b`.
  unsigned char differs = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    differs |= static_cast<unsigned char>(a[i] ^ other);
  }
  return differs == 0;
}

absl::StatusOr<AccessList> AccessList::Parse(std::string_view file,
                                             std::string_view text) {
  AccessList list;
  int number = 0;
  for (absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 3) {
      return BadLine(file, number, "a line is NAME ROLE TOKEN");
    }
    const std::optional<Role> role = ParseRole(words[1]);
    if (!role) {
      return BadLine(file, number, "the role is client, worker or admin");
    }
    if (words[2].size() < kMinTokenBytes) {
      return BadLine(file, number, "a token has at least 16 characters");
    }
    list.Add({.name = words[0], .role = *role, .token = words[2]});
  }
  if (list.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(file), " has no tokens"));
  }
  return list;
}

absl::StatusOr<const AccessList::Entry*> AccessList::Find(
    std::string_view authorization) const {
  if (!authorization.starts_with(kBearer)) {
    return absl::UnauthenticatedError(
        "give a token as metadata `authorization: Bearer TOKEN`");
  }
  const std::string_view token = authorization.substr(kBearer.size());
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (ConstantTimeEqual(token, entry.token)) found = &entry;
  }
  if (found == nullptr) {
    return absl::UnauthenticatedError("the bearer token is not known here");
  }
  return found;
}

absl::StatusOr<Identity> Admit(const AccessRules& rules, ServiceKind service,
                               const Credentials& credentials) {
  const bool has_certificate =
      rules.certificates && !credentials.subject.empty();
  if (service == ServiceKind::kControl && has_certificate &&
      IsWorkers(rules, credentials.subject)) {
    return Identity{.name = credentials.subject};
  }
  if (!rules.tokens.empty()) {
    const auto entry = rules.tokens.Find(credentials.authorization);
    if (!entry.ok()) return entry.status();
    if (!Allows((*entry)->role, service)) {
      return absl::PermissionDeniedError(absl::StrCat(
          "the token of '", (*entry)->name, "' is not one for ",
          service == ServiceKind::kControl ? "ranks (role worker)"
                                           : "clients (role client)"));
    }
    return Identity{.name = (*entry)->name,
                    .sees_all = (*entry)->role == Role::kAdmin};
  }
  if (service == ServiceKind::kControl && has_certificate) {
    return absl::PermissionDeniedError(
        absl::StrCat("the certificate of '", credentials.subject,
                     "' is not one for ranks (--worker-subject)"));
  }
  if (service == ServiceKind::kControl && rules.certificates) {
    return absl::UnauthenticatedError(
        "a rank needs a certificate that --tls-client-ca signed");
  }
  if (has_certificate) {
    return Identity{.name = credentials.subject, .sees_all = false};
  }
  if (rules.certificates) {
    return absl::UnauthenticatedError(
        "show a certificate that --tls-client-ca of the coordinator signed "
        "(--tls-cert and --tls-key of the client), or start the coordinator "
        "with --token-file and give a token");
  }
  return Identity{.name = credentials.address};
}

bool IsLoopback(std::string_view listen) {
  if (listen.starts_with("unix:") || listen.starts_with("localhost:") ||
      listen.starts_with("[::1]:")) {
    return true;
  }
  // 127.x.y.z, and not a name that begins so.
  const std::string_view host = listen.substr(0, listen.rfind(':'));
  return host.starts_with("127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

}  // namespace portolan

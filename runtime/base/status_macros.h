#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Early return of errors; Debian 12's Abseil (20220623) has no such macros.

#define PORTOLAN_RETURN_IF_ERROR(expr)                                  \
  do {                                                                  \
    if (absl::Status portolan_status = (expr); !portolan_status.ok()) { \
      return portolan_status;                                           \
    }                                                                   \
  } while (false)

#define PORTOLAN_ASSIGN_OR_RETURN(lhs, expr)                               \
  PORTOLAN_ASSIGN_OR_RETURN_IMPL_(PORTOLAN_CONCAT_(portolan_r_, __LINE__), \
                                  lhs, expr)

#define PORTOLAN_ASSIGN_OR_RETURN_IMPL_(result, lhs, expr) \
  auto result = (expr);                                    \
  if (!result.ok()) return std::move(result).status();     \
  lhs = *std::move(result)

#define PORTOLAN_CONCAT_(a, b) PORTOLAN_CONCAT_IMPL_(a, b)
#define PORTOLAN_CONCAT_IMPL_(a, b) a##b

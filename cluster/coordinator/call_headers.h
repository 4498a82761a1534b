#pragma once

#include <string>

namespace portolan {

// Headers of a call that others get to see. A header may hold any bytes, and
// neither answers nor messages may: what is not sound counts as not sent.

// x-request-id as it may be sent back and logged: up to 128 printable
// characters of ASCII; else empty.
std::string SoundRequestId(std::string value);
// traceparent as ranks get it: in the form of the W3C
// (00-<trace>-<span>-<flags> in lower-case hexadecimal digits); else empty.
std::string SoundTraceparent(std::string value);

}  // namespace portolan

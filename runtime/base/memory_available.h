#pragma once

#include <cstdint>
#include <string>

namespace portolan {

// Bytes that this process may still take without swapping or being killed: what
// the machine has left, and no more than its memory cgroup (v1 or v2, every
// level up to the root) leaves. Page cache counts as free, for the kernel gives
// it up first. The largest int64_t if nobody tells.
//
// `root`: where /proc and /sys/fs/cgroup are looked for; a test's directory.
int64_t AvailableMemory(const std::string& root = "");

}  // namespace portolan

#pragma once

#include <string>

namespace portolan {

// What `--version` prints: version and commit, the CPU's kernels, and the
// versions of MPI, gRPC, CUDA and NCCL, or "not built in".
std::string VersionText();

// "0.1.0 (4f2a91c)".
std::string VersionAndCommit();

}  // namespace portolan

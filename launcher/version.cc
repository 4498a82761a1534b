#include "launcher/version.h"

#include <mpi.h>

#include "absl/strings/str_cat.h"
#include "launcher/version_info.h"
#include "runtime/base/cpu_topology.h"
#include "runtime/kernels/cpu_path.h"

namespace portolan {
namespace {

std::string MpiVersion() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);  // allowed before MPI_Init
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find(','));
}

}  // namespace

std::string VersionAndCommit() {
  return absl::StrCat(kVersion, " (", kCommit, ")");
}

std::string VersionText() {
  std::string paths;
  for (const CpuPath path : SupportedCpuPaths()) {
    absl::StrAppend(&paths, paths.empty() ? "" : " ",
                    std::string(CpuPathName(path)));
  }
  return absl::StrCat("portolan ", VersionAndCommit(), "\n",
                      "cpu:  ", CpuModelName(), "; kernels ", paths, "\n",
                      "mpi:  ", MpiVersion(), "\n", "grpc: ", kGrpcVersion,
                      "\n", "cuda: ", kCudaVersion, "\n",
                      "nccl: ", kNcclVersion);
}

}  // namespace portolan

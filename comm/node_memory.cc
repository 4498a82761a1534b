#include "comm/node_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

constexpr size_t kPage = 4096;

// What the first rank of the host tells the others.
struct Segment {
  int32_t error = 0;  // errno
  char name[60] = {};
};

// 0 or errno. Signals interrupt it.
int Reserve(int fd, size_t bytes) {
  int error = EINTR;
  while (error == EINTR) {
    error = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  }
  return error;
}

int Make(size_t bytes, Segment& segment) {
  std::random_device random;
  std::snprintf(segment.name, sizeof(segment.name), "/portolan.%08x%08x",
                random(), random());
  const int fd = shm_open(segment.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                          S_IRUSR | S_IWUSR);
  segment.error = fd < 0 ? errno : Reserve(fd, bytes);
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NodeMemory>> NodeMemory::Create(
    MPI_Comm node, size_t inbox_bytes) {
  int rank = 0, size = 0;
  MPI_Comm_rank(node, &rank);
  MPI_Comm_size(node, &size);
  const size_t part_bytes =
      (sizeof(LifeCell) + inbox_bytes + kPage - 1) / kPage * kPage;
  const size_t bytes = part_bytes * static_cast<size_t>(size);

  Segment segment;
  int fd = rank == 0 ? Make(bytes, segment) : -1;
  MPI_Bcast(&segment, sizeof(segment), MPI_BYTE, 0, node);
  int error = segment.error;
  if (error == 0 && rank > 0) {
    fd = shm_open(segment.name, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) error = errno;
  }
  void* data = MAP_FAILED;
  if (error == 0) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  if (fd >= 0) close(fd);
  int worst = error;
  MPI_Allreduce(&error, &worst, 1, MPI_INT, MPI_MAX, node);
  if (rank == 0) shm_unlink(segment.name);
  if (worst != 0) {
    if (data != MAP_FAILED) munmap(data, bytes);
    return absl::ResourceExhaustedError(absl::StrCat(
        "the ", size, " ranks of this host cannot share ", bytes,
        " bytes of memory (", std::strerror(worst),
        "); enlarge /dev/shm (docker run --shm-size), or give all containers "
        "of the host one (--ipc)"));
  }
  return std::unique_ptr<NodeMemory>(new NodeMemory(
      static_cast<std::byte*>(data), part_bytes, static_cast<size_t>(size)));
}

NodeMemory::~NodeMemory() { munmap(data_, part_bytes_ * num_parts_); }

std::vector<std::byte*> NodeMemory::Inboxes() const {
  std::vector<std::byte*> inboxes;
  for (size_t rank = 0; rank < num_parts_; ++rank) {
    inboxes.push_back(data_ + rank * part_bytes_ + sizeof(LifeCell));
  }
  return inboxes;
}

}  // namespace portolan

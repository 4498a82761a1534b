#include "comm/mpi_session.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/end_timer.h"
#include "comm/heartbeat.h"
#include "comm/mpi_transport.h"
#include "comm/ring_transport.h"
#include "comm/termination.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr absl::Duration kFinishTimeout = absl::Minutes(30);

// What every rank shows to all others at the start.
struct Card {
  char host[64] = {};
  int32_t node = 0;  // world rank of the first rank of the host
  uint64_t job = 0;  // of rank 0
  LifeAddress life;
};

uint64_t RandomNumber() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) ^ device();
}

// Memory that the ranks of a host share: of each a LifeCell and its inbox.
class NodeMemory {
 public:
  // Collective over the ranks of the host.
  NodeMemory(MPI_Comm node, size_t inbox_bytes) {
    std::byte* own = nullptr;
    const auto bytes =
        static_cast<MPI_Aint>(sizeof(LifeCell) + inbox_bytes + kAlign);
    MPI_Win_allocate_shared(bytes, 1, MPI_INFO_NULL, node, &own, &window_);
    std::memset(own, 0, static_cast<size_t>(bytes));
    MPI_Barrier(node);
    int size = 0;
    MPI_Comm_size(node, &size);
    for (int rank = 0; rank < size; ++rank) {
      MPI_Aint part_bytes = 0;
      int unit = 0;
      std::byte* part = nullptr;
      MPI_Win_shared_query(window_, rank, &part_bytes, &unit, &part);
      parts_.push_back(Align(part));
    }
  }

  LifeCell& cell(size_t local_rank) const {
    return *reinterpret_cast<LifeCell*>(parts_[local_rank]);
  }
  std::vector<std::byte*> Inboxes() const {
    std::vector<std::byte*> inboxes;
    for (std::byte* part : parts_) inboxes.push_back(part + sizeof(LifeCell));
    return inboxes;
  }
  void Free() { MPI_Win_free(&window_); }

 private:
  static constexpr size_t kAlign = 64;

  // Every process maps at page boundaries, so all find the same place.
  static std::byte* Align(std::byte* part) {
    const auto at = reinterpret_cast<uintptr_t>(part);
    return part + (kAlign - at % kAlign) % kAlign;
  }

  MPI_Win window_ = MPI_WIN_NULL;
  std::vector<std::byte*> parts_;
};

class Session final : public MpiSession {
 public:
  explicit Session(const MpiSessionOptions& options) : options_(options) {}
  ~Session() override;

  absl::Status Start(int* argc, char*** argv);

  Transport& transport() override { return *transport_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return static_cast<int>(on_host_.size()); }
  int Finish(const absl::Status& status, int failure_code) override;

 private:
  absl::Status StartMpi(int* argc, char*** argv);
  void ExchangeCards();
  absl::StatusOr<bool> UseSharedMemory() const;
  void StartHeartbeat();
  void StartTransport(bool shared);
  absl::Status WaitForAll();
  [[noreturn]] void EndNow(const absl::Status& status, int code);

  const MpiSessionOptions options_;
  MPI_Comm world_ = MPI_COMM_NULL;
  MPI_Comm node_ = MPI_COMM_NULL;
  int rank_ = 0;
  int world_size_ = 0;
  int local_rank_ = 0;
  std::vector<int> on_host_;  // world ranks of this host, by local rank
  std::vector<Card> cards_;   // [world_size]
  Heartbeat::Endpoint endpoint_;
  std::unique_ptr<NodeMemory> memory_;
  std::unique_ptr<EndTimer> end_timer_;
  std::unique_ptr<Heartbeat> heartbeat_;
  std::unique_ptr<Transport> transport_;
  bool finished_ = false;
};

absl::Status Session::Start(int* argc, char*** argv) {
  PORTOLAN_RETURN_IF_ERROR(StartMpi(argc, argv));
  ExchangeCards();
  PORTOLAN_ASSIGN_OR_RETURN(const bool shared, UseSharedMemory());
  const size_t ring_bytes =
      RingTransport::RingBytesFor(world_size_, options_.total_ring_bytes);
  memory_ = std::make_unique<NodeMemory>(
      node_, shared ? RingTransport::InboxBytes(world_size_, ring_bytes) : 0);
  if (options_.catch_termination) CatchTermination();
  StartHeartbeat();
  StartTransport(shared);
  return absl::OkStatus();
}

absl::Status Session::StartMpi(int* argc, char*** argv) {
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) !=
          MPI_SUCCESS ||
      provided < MPI_THREAD_FUNNELED) {
    return absl::InternalError(
        "MPI cannot be initialised for a program with threads; check the MPI "
        "installation, or run without mpirun");
  }
  // Collectives are used here only, where mpirun still ends the job by itself
  // if a rank dies.
  MPI_Comm_dup(MPI_COMM_WORLD, &world_);
  MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(world_, &rank_);
  MPI_Comm_size(world_, &world_size_);
  MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL,
                      &node_);
  MPI_Comm_rank(node_, &local_rank_);
  int local_size = 0;
  MPI_Comm_size(node_, &local_size);
  on_host_.resize(static_cast<size_t>(local_size));
  MPI_Allgather(&rank_, 1, MPI_INT, on_host_.data(), 1, MPI_INT, node_);
  return absl::OkStatus();
}

void Session::ExchangeCards() {
  const bool other_hosts = local_size() < world_size_;
  endpoint_ = Heartbeat::OpenEndpoint(other_hosts);
  Card mine;
  gethostname(mine.host, sizeof(mine.host) - 1);
  mine.node = on_host_[0];
  mine.job = RandomNumber();
  mine.life = endpoint_.address;
  cards_.resize(static_cast<size_t>(world_size_));
  MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, cards_.data(), sizeof(mine),
                MPI_BYTE, world_);
}

absl::StatusOr<bool> Session::UseSharedMemory() const {
  if (options_.transport == TransportKind::kMpi) return false;
  const auto other = std::find_if(
      cards_.begin(), cards_.end(),
      [&](const Card& card) { return card.node != cards_[0].node; });
  if (other == cards_.end()) return true;
  if (options_.transport == TransportKind::kAuto) return false;
  return absl::InvalidArgumentError(absl::StrCat(
      "--transport shm needs all ranks on one host, but rank 0 is on ",
      cards_[0].host, " and rank ", other - cards_.begin(), " on ", other->host,
      "; use --transport mpi or auto"));
}

void Session::StartHeartbeat() {
  std::vector<LifePeer> peers;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (rank == rank_) continue;
    LifePeer peer{.rank = Rank{rank},
                  .address = cards_[static_cast<size_t>(rank)].life};
    const auto local = std::find(on_host_.begin(), on_host_.end(), rank);
    if (local != on_host_.end()) {
      peer.cell = &memory_->cell(static_cast<size_t>(local - on_host_.begin()));
    }
    peers.push_back(peer);
  }
  end_timer_ = std::make_unique<EndTimer>(options_.end_after_loss,
                                          options_.end_after_termination);
  heartbeat_ = std::make_unique<Heartbeat>(
      Rank{rank_}, memory_->cell(static_cast<size_t>(local_rank_)),
      std::move(peers), endpoint_, cards_[0].job,
      HeartbeatOptions{.beat = options_.beat, .silence = options_.silence},
      [this](const LostPeer& lost) {
        end_timer_->Lost(absl::StrCat(
            "rank ", ToIndex(lost.rank), " on ",
            cards_[static_cast<size_t>(ToIndex(lost.rank))].host, " is lost (",
            lost.how, "), noticed by rank ", rank_,
            ", which was too busy to stop in time: restart the job"));
      });
}

void Session::StartTransport(bool shared) {
  std::vector<std::string> hosts;
  for (const Card& card : cards_) hosts.emplace_back(card.host);
  if (!shared) {
    transport_ =
        std::make_unique<MpiTransport>(world_, std::move(hosts), *heartbeat_);
    return;
  }
  transport_ = std::make_unique<RingTransport>(
      Rank{rank_}, memory_->Inboxes(), *heartbeat_,
      RingTransport::Options{.name = "shm",
                             .hosts = std::move(hosts),
                             .ring_bytes = RingTransport::RingBytesFor(
                                 world_size_, options_.total_ring_bytes)});
}

// All ranks say that they have nothing more to send.
absl::Status Session::WaitForAll() {
  const auto world = static_cast<size_t>(world_size_);
  const std::byte bye{1};
  std::vector<std::byte> byes(world);
  std::vector<std::span<const std::byte>> send(world, {&bye, 1});
  std::vector<std::span<std::byte>> recv;
  for (std::byte& one : byes) recv.emplace_back(&one, 1);
  return transport_->AllToAllV(
      send, recv, WaitContext{.phase = "finish", .timeout = kFinishTimeout});
}

int Session::Finish(const absl::Status& status, int failure_code) {
  if (!status.ok()) EndNow(status, failure_code);
  if (absl::Status all = WaitForAll(); !all.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(all.message()).c_str());
    EndNow(all, failure_code);
  }
  heartbeat_->Announce(absl::OkStatus());
  transport_.reset();
  heartbeat_.reset();
  end_timer_.reset();
  MPI_Barrier(node_);  // all have left the shared memory
  memory_->Free();
  MPI_Comm_free(&node_);
  MPI_Comm_free(&world_);
  MPI_Finalize();
  finished_ = true;
  return 0;
}

void Session::EndNow(const absl::Status& status, int code) {
  heartbeat_->Announce(status);
  std::fflush(nullptr);
  std::_Exit(code);
}

Session::~Session() {
  if (finished_ || heartbeat_ == nullptr) return;
  EndNow(absl::AbortedError("the rank ended early"), 1);
}

}  // namespace

absl::StatusOr<TransportKind> ParseTransportKind(absl::string_view name) {
  if (name == "auto") return TransportKind::kAuto;
  if (name == "mpi") return TransportKind::kMpi;
  if (name == "shm") return TransportKind::kShm;
  return absl::InvalidArgumentError(
      absl::StrCat("transport `", name, "` is none of auto, mpi, shm"));
}

absl::StatusOr<std::unique_ptr<MpiSession>> MpiSession::Create(
    int* argc, char*** argv, const MpiSessionOptions& options) {
  auto session = std::make_unique<Session>(options);
  PORTOLAN_RETURN_IF_ERROR(session->Start(argc, argv));
  return session;
}

}  // namespace portolan

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
#include "comm/node_memory.h"
#include "comm/peer_errors.h"
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

class Session final : public MpiSession {
 public:
  explicit Session(const MpiSessionOptions& options)
      : options_(options), rank_(options.launched_rank) {}
  ~Session() override;

  absl::Status Start(int* argc, char*** argv);

  Transport& transport() override { return *transport_; }
  int Finish(const absl::Status& status, int failure_code) override;

 private:
  absl::Status Meet(int* argc, char*** argv);
  absl::Status StartMpi(int* argc, char*** argv);
  void ExchangeCards();
  absl::Status ShareMemory(bool shared);
  absl::StatusOr<bool> UseSharedMemory() const;
  void WireHeartbeat();
  void WireTransport(bool shared);
  std::vector<std::string> Hosts() const;
  void Lost(const LostPeer& lost);
  std::string Waiting(absl::string_view phase, absl::string_view how) const;
  absl::Status WaitForAll();
  [[noreturn]] void EndNow(const absl::Status& status, int code);

  const MpiSessionOptions options_;
  MPI_Comm world_ = MPI_COMM_NULL;
  MPI_Comm node_ = MPI_COMM_NULL;
  int rank_;  // until MPI tells: of the launcher, or -1
  int world_size_ = 0;
  int local_rank_ = 0;
  std::vector<int> on_host_;  // world ranks of this host, by local rank
  std::vector<Card> cards_;   // [world_size]
  Heartbeat::Endpoint endpoint_;
  std::unique_ptr<NodeMemory> memory_;
  std::unique_ptr<EndTimer> end_timer_;
  std::unique_ptr<Heartbeat> heartbeat_;
  std::unique_ptr<Transport> transport_;
  std::vector<std::byte> byes_;  // to and from all ranks
  bool finished_ = false;
};

absl::Status Session::Start(int* argc, char*** argv) {
  // From here on: mpirun tells the others by a signal when a rank ends early.
  if (options_.catch_termination) CatchTermination();
  end_timer_ = std::make_unique<EndTimer>(options_.end_after_loss,
                                          options_.end_after_termination);
  end_timer_->Waits(
      Waiting("start",
              absl::StrCat("not all have come within ",
                           absl::FormatDuration(options_.start_timeout),
                           " or one has ended; look at the program "
                           "of each rank, or allow more by "
                           "--start-timeout")),
      options_.start_timeout);
  PORTOLAN_RETURN_IF_ERROR(Meet(argc, argv));
  end_timer_->Returned();
  heartbeat_->Start([this](const LostPeer& lost) { Lost(lost); });
  return absl::OkStatus();
}

// All that waits for other ranks without a deadline.
absl::Status Session::Meet(int* argc, char*** argv) {
  PORTOLAN_RETURN_IF_ERROR(StartMpi(argc, argv));
  ExchangeCards();
  PORTOLAN_ASSIGN_OR_RETURN(const bool shared, UseSharedMemory());
  PORTOLAN_RETURN_IF_ERROR(ShareMemory(shared));
  WireHeartbeat();
  WireTransport(shared);
  return absl::OkStatus();
}

// "rank 0 on host7 waits in phase `start` for other ranks: ".
std::string Session::Waiting(absl::string_view phase,
                             absl::string_view how) const {
  char host[64] = {};
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(rank_ < 0 ? "a rank" : absl::StrCat("rank ", rank_),
                      " on ", host, " waits in phase `", phase,
                      "` for other ranks: ", how);
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
  // if a rank dies, and so does MPI on any other error of theirs.
  MPI_Comm_dup(MPI_COMM_WORLD, &world_);
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
  const bool other_hosts = std::ssize(on_host_) < world_size_;
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

// Every rank hears if one host is short of memory.
absl::Status Session::ShareMemory(bool shared) {
  const size_t ring_bytes =
      RingTransport::RingBytesFor(world_size_, options_.total_ring_bytes);
  auto memory = NodeMemory::Create(
      node_, shared ? RingTransport::InboxBytes(world_size_, ring_bytes) : 0);
  const int mine = memory.ok() ? 0 : 1;
  std::vector<int> failed(static_cast<size_t>(world_size_));
  MPI_Allgather(&mine, 1, MPI_INT, failed.data(), 1, MPI_INT, world_);
  const auto first = std::find(failed.begin(), failed.end(), 1);
  if (first == failed.end()) {
    memory_ = *std::move(memory);
    return absl::OkStatus();
  }
  const auto odd = static_cast<size_t>(first - failed.begin());
  return absl::ResourceExhaustedError(absl::StrCat(
      "rank ", odd, " on ", cards_[odd].host, ": ",
      memory.ok() ? "the ranks of its host cannot share memory, as it says"
                  : memory.status().message()));
}

void Session::WireHeartbeat() {
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
  heartbeat_ = std::make_unique<Heartbeat>(
      Rank{rank_}, memory_->cell(static_cast<size_t>(local_rank_)),
      std::move(peers), endpoint_, cards_[0].job,
      HeartbeatOptions{.beat = options_.beat, .silence = options_.silence});
}

// On the heartbeat's thread.
void Session::Lost(const LostPeer& lost) {
  end_timer_->Lost(absl::StrCat(
      "rank ", ToIndex(lost.rank), " on ", transport_->host(lost.rank),
      " is lost (", lost.how, "), noticed by rank ", rank_, " on ",
      transport_->host(Rank{rank_}), ", which was too busy to stop in time",
      Describe(transport_->doing()), ": restart the job"));
}

// By rank. Two hosts of one name get their first rank's number behind it: who
// compares names finds the ranks of a host.
std::vector<std::string> Session::Hosts() const {
  std::vector<std::string> hosts;
  for (const Card& card : cards_) {
    const bool shared_name =
        std::any_of(cards_.begin(), cards_.end(), [&](const Card& other) {
          return other.node != card.node &&
                 std::strcmp(other.host, card.host) == 0;
        });
    hosts.push_back(shared_name ? absl::StrCat(card.host, "#", card.node)
                                : std::string(card.host));
  }
  return hosts;
}

void Session::WireTransport(bool shared) {
  if (!shared) {
    MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN);
    transport_ = std::make_unique<MpiTransport>(world_, Hosts(), *heartbeat_);
    return;
  }
  transport_ = std::make_unique<RingTransport>(
      Rank{rank_}, memory_->Inboxes(), *heartbeat_,
      RingTransport::Options{.name = "shm",
                             .hosts = Hosts(),
                             .ring_bytes = RingTransport::RingBytesFor(
                                 world_size_, options_.total_ring_bytes)});
}

// All ranks say that they have nothing more to send.
absl::Status Session::WaitForAll() {
  const auto world = static_cast<size_t>(world_size_);
  byes_.assign(2 * world, std::byte{1});
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> recv;
  for (size_t rank = 0; rank < world; ++rank) {
    send.emplace_back(&byes_[rank], 1);
    recv.emplace_back(&byes_[world + rank], 1);
  }
  return transport_->AllToAllV(
      send, recv, WaitContext{.phase = "finish", .timeout = kFinishTimeout});
}

int Session::Finish(const absl::Status& status, int failure_code) {
  if (!status.ok()) EndNow(status, failure_code);
  if (absl::Status all = WaitForAll(); !all.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(all.message()).c_str());
    EndNow(all, failure_code);
  }
  end_timer_->Waits(
      Waiting("finish",
              "one has died or hangs as it leaves; what this rank "
              "had to do is done, restart the job if others had not"),
      options_.finish_timeout);
  heartbeat_->Announce(absl::OkStatus());
  heartbeat_.reset();
  transport_.reset();
  MPI_Barrier(node_);  // all have left the shared memory
  memory_.reset();
  MPI_Comm_free(&node_);
  MPI_Comm_free(&world_);
  MPI_Finalize();
  end_timer_.reset();
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

// A rank of the multi-process tests of comm.
//
//   exchange_program TRANSPORT contract
//   exchange_program TRANSPORT fault PHASE ACTION
//   exchange_program TRANSPORT leave SECONDS
//
// `fault` runs steps with rows in messages of their own; in step 3 the last
// rank does ACTION as it enters PHASE: kill (SIGKILL), busy (SIGKILL, while
// rank 0 computes for long), stop (SIGSTOP for 0.5 s), halt (SIGSTOP for good),
// fail (an error of its own), slow (5 s without an exchange), late (slow, where
// a step may take 1 s), exit (leaves without a word), numerics or epoch
// (another one from the start); or torn: rank 1 kills it as that enters PHASE,
// amid the large messages of the others.
//
// `leave`: the last rank hangs in MPI_Finalize(); the others wait SECONDS.
//
// Prints "rank R (TRANSPORT) at MILLISECONDS ms: ok" or "... error: ...".
#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/gather.h"
#include "comm/mpi_session.h"
#include "runtime/base/status_macros.h"
#include "tests/exchange_contract.h"

namespace portolan {
namespace {

// The last rank of `leave`.
bool hangs_at_the_end = false;

constexpr int kSteps = 6;
constexpr int kFaultyStep = 3;
constexpr int kFaultyLayer = 1;

void StopForHalfASecond() {
  const pid_t self = getpid();
  if (fork() == 0) {  // nobody else would let this process go on
    usleep(500'000);
    kill(self, SIGCONT);
    _exit(0);
  }
  raise(SIGSTOP);
}

void Act(int rank, const std::string& action) {
  std::fprintf(stderr, "rank %d acts at %ld ms\n", rank,
               static_cast<long>(absl::ToUnixMillis(absl::Now())));
  if (action == "kill" || action == "busy") raise(SIGKILL);
  if (action == "halt") raise(SIGSTOP);
  if (action == "stop") StopForHalfASecond();
  if (action == "slow" || action == "late") absl::SleepFor(absl::Seconds(5));
  if (action == "exit") _exit(3);
}

absl::Status RunFault(Transport& transport, const std::string& phase,
                      const std::string& action) {
  const bool faulty = ToIndex(transport.rank()) == transport.world_size() - 1;
  testing::ContractCase c;
  c.steps = kSteps;
  c.hidden = 700;
  c.eager_bytes = 1024;
  c.tokens_of_rank = {9};
  if (faulty && action == "numerics") c.numerics_id = 0xbad;
  if (faulty && action == "epoch") c.epoch = 0x5;
  if (action == "late") c.step_timeout = absl::Milliseconds(10);
  if (action == "torn") {
    c.hidden = 1100;
    c.tokens_of_rank = {300};
  }
  const pid_t pid = getpid();
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory pids,
      AllGather(transport, std::as_bytes(std::span(&pid, 1)),
                WaitContext{.phase = "start"}));
  const int last = transport.world_size() - 1;
  const bool acts = action == "torn" ? transport.rank() == Rank{1} : faulty;
  c.phase_hook = [&](const PhaseEvent& event) {
    const bool here = event.layer < 0 || event.layer == kFaultyLayer;
    if (acts && here && event.step == kFaultyStep &&
        ToString(event.phase) == phase) {
      Act(last, action);
      if (action == "torn") {
        kill(pids.As<pid_t>()[static_cast<size_t>(last)], SIGKILL);
      }
    }
    if (action == "busy" && transport.rank() == Rank{0} && here &&
        event.step == kFaultyStep && event.phase == ExchangePhase::kCompute) {
      absl::SleepFor(absl::Seconds(20));
    }
  };
  if (faulty && action == "fail") {
    c.compute_status = [](int64_t step, int layer) {
      return step == kFaultyStep && layer == kFaultyLayer
                 ? absl::DataLossError("expert L1/E3: read error at byte 4096")
                 : absl::OkStatus();
    };
  }
  return testing::CheckExchange(transport, c);
}

int Main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s TRANSPORT contract|fault ...\n", argv[0]);
    return 2;
  }
  const std::string mode = argv[2];
  const std::string phase = argc > 3 ? argv[3] : "";
  const std::string action = argc > 4 ? argv[4] : "";
  const auto kind = ParseTransportKind(argv[1]);
  if (!kind.ok()) {
    std::fprintf(stderr, "error: %s\n", kind.status().ToString().c_str());
    return 2;
  }
  auto session = MpiSession::Create(
      &argc, &argv,
      {.transport = *kind,
       .finish_timeout =
           absl::Seconds(mode == "leave" ? std::atoi(argv[3]) : 60)});
  if (!session.ok()) {
    std::fprintf(stderr, "error: %s\n", session.status().ToString().c_str());
    return 1;
  }
  Transport& transport = (*session)->transport();
  hangs_at_the_end = mode == "leave" &&
                     ToIndex(transport.rank()) == transport.world_size() - 1;
  const absl::Status status = mode != "fault"
                                  ? testing::CheckAllCases(transport)
                                  : RunFault(transport, phase, action);
  // One write, so that the lines of several ranks do not mix.
  const std::string line = absl::StrCat(
      "rank ", ToIndex(transport.rank()), " (", transport.name(), ") at ",
      absl::ToUnixMillis(absl::Now()),
      " ms: ", status.ok() ? "ok" : absl::StrCat("error: ", status.ToString()),
      "\n");
  std::fputs(line.c_str(), stderr);
  return (*session)->Finish(status);
}

}  // namespace
}  // namespace portolan

// Stands before MPI's own, which goes by this second name.
extern "C" int MPI_Finalize() {
  while (portolan::hangs_at_the_end) pause();
  return PMPI_Finalize();
}

int main(int argc, char** argv) { return portolan::Main(argc, argv); }

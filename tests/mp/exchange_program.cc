// A rank of the multi-process tests of comm.
//
//   exchange_program TRANSPORT contract
//   exchange_program TRANSPORT fault PHASE ACTION
//
// `fault` runs steps with rows in messages of their own; in step 3 the last
// rank does ACTION as it enters PHASE: kill (SIGKILL), stop (SIGSTOP for
// 0.5 s), fail (an error of its own), slow (5 s without an exchange), exit
// (leaves without a word), numerics (another numerics id from the start).
// Prints "rank R (TRANSPORT) at MILLISECONDS ms: ok" or "... error: ...".
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/mpi_session.h"
#include "runtime/base/status_macros.h"
#include "tests/exchange_contract.h"

namespace portolan {
namespace {

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
  if (action == "kill") raise(SIGKILL);
  if (action == "stop") StopForHalfASecond();
  if (action == "slow") absl::SleepFor(absl::Seconds(5));
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
  c.phase_hook = [&](const PhaseEvent& event) {
    const bool here = event.layer < 0 || event.layer == kFaultyLayer;
    if (faulty && here && event.step == kFaultyStep &&
        ToString(event.phase) == phase) {
      Act(ToIndex(transport.rank()), action);
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
  auto session = MpiSession::Create(&argc, &argv, {.transport = *kind});
  if (!session.ok()) {
    std::fprintf(stderr, "error: %s\n", session.status().ToString().c_str());
    return 1;
  }
  Transport& transport = (*session)->transport();
  const absl::Status status = mode == "contract"
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

int main(int argc, char** argv) { return portolan::Main(argc, argv); }

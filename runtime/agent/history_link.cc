#include "runtime/agent/history_link.h"

#include <grpcpp/grpcpp.h>

#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "experts/history_record.h"
#include "proto/expert_map.grpc.pb.h"
#include "runtime/agent/channel.h"
#include "runtime/base/mutex.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

constexpr HistoryFormat kFormats[] = {HistoryFormat::kSequence,
                                      HistoryFormat::kIteration};

}  // namespace

class HistoryLink::Impl {
 public:
  Impl(const CoordinatorAddress& address, const Options& options,
       HistoryMailbox& mailbox);
  ~Impl();

 private:
  // A call that the destructor can end.
  class Call;
  // What is known of one store's replica.
  struct Replica {
    HistoryFormat format = HistoryFormat::kSequence;
    uint64_t version = 0;
    uint64_t last_id = 0;
  };

  void FollowLoop(HistoryFormat format);
  void Follow(Replica& replica);
  void Take(const v1::ExpertMapUpdate& update, Replica& replica);
  void AppendLoop();
  void Append(const HistoryMailbox::Outgoing& outgoing);
  v1::ExpertMapKey KeyOf(HistoryFormat format) const;
  // False at once if the link ends.
  bool Pause() ABSL_LOCKS_EXCLUDED(mu_);
  bool stopping() const ABSL_LOCKS_EXCLUDED(mu_);

  const CoordinatorAddress address_;
  const Options options_;
  const std::unique_ptr<v1::ExpertMaps::Stub> stub_;
  HistoryMailbox& mailbox_;

  mutable Mutex mu_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mu_);
  std::set<HistoryFormat> synced_ ABSL_GUARDED_BY(mu_);

  std::vector<std::thread> threads_;
};

class HistoryLink::Impl::Call {
 public:
  explicit Call(Impl& link) : link_(link) {
    AddToken(link.address_, context_);
    MutexLock lock(link.mu_);
    link.calls_.insert(&context_);
    if (link.stopping_) context_.TryCancel();
  }
  ~Call() {
    MutexLock lock(link_.mu_);
    link_.calls_.erase(&context_);
  }

  grpc::ClientContext& context() { return context_; }

 private:
  Impl& link_;
  grpc::ClientContext context_;
};

HistoryLink::Impl::Impl(const CoordinatorAddress& address,
                        const Options& options, HistoryMailbox& mailbox)
    : address_(address),
      options_(options),
      stub_(v1::ExpertMaps::NewStub(MakeChannel(address))),
      mailbox_(mailbox) {
  for (const HistoryFormat format : kFormats) {
    threads_.emplace_back([this, format] { FollowLoop(format); });
  }
  threads_.emplace_back([this] { AppendLoop(); });
}

HistoryLink::Impl::~Impl() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    stop_.NotifyAll();
  }
  mailbox_.Close();
  for (std::thread& thread : threads_) thread.join();
}

bool HistoryLink::Impl::stopping() const {
  MutexLock lock(mu_);
  return stopping_;
}

bool HistoryLink::Impl::Pause() {
  const absl::Time end = SteadyNow() + options_.retry;
  MutexLock lock(mu_);
  while (!stopping_ && SteadyNow() < end) stop_.WaitFor(mu_, end - SteadyNow());
  return !stopping_;
}

v1::ExpertMapKey HistoryLink::Impl::KeyOf(HistoryFormat format) const {
  v1::ExpertMapKey key;
  key.set_fingerprint(options_.fingerprint);
  key.set_format(static_cast<uint32_t>(format));
  return key;
}

void HistoryLink::Impl::FollowLoop(HistoryFormat format) {
  Replica replica{.format = format};
  do {
    Follow(replica);
  } while (Pause());
}

void HistoryLink::Impl::Follow(Replica& replica) {
  Call call(*this);
  v1::FollowExpertMapsRequest request;
  *request.mutable_store() = KeyOf(replica.format);
  request.set_from_version(replica.version);
  const auto reader = stub_->Follow(&call.context(), request);
  v1::ExpertMapUpdate update;
  while (reader->Read(&update)) Take(update, replica);
  reader->Finish();
}

// Rows that others gave up are not taken out here: the rank's own stores are
// bounded and choose for themselves. So a second snapshot brings only what is
// newer than all that came before - unless the shared history has begun anew,
// which a version below the replica's tells: then its ids began anew as well.
void HistoryLink::Impl::Take(const v1::ExpertMapUpdate& update,
                             Replica& replica) {
  if (update.snapshot_begin() && update.version() < replica.version) {
    replica.version = 0;
    replica.last_id = 0;
  }
  for (const v1::ExpertMapRow& row : update.added()) {
    if (row.id() <= replica.last_id) continue;
    replica.last_id = row.id();
    mailbox_.Deliver({.format = replica.format,
                      .key = row.key(),
                      .map = row.map(),
                      .id = row.id()});
  }
  if (!update.complete()) return;
  replica.version = update.version();
  bool all_synced = false;
  {
    MutexLock lock(mu_);
    synced_.insert(replica.format);
    all_synced = synced_.size() == std::size(kFormats);
  }
  if (all_synced) mailbox_.SetSynced();
}

void HistoryLink::Impl::AppendLoop() {
  while (!stopping()) {
    const HistoryMailbox::Outgoing outgoing =
        mailbox_.TakeOutgoing(absl::Minutes(1), options_.append_bytes);
    if (!outgoing.rows.empty()) Append(outgoing);
  }
}

// What cannot be sent is lost: the next rows teach as much.
void HistoryLink::Impl::Append(const HistoryMailbox::Outgoing& outgoing) {
  Call call(*this);
  call.context().set_deadline(
      absl::ToChronoTime(absl::Now() + options_.append_timeout));
  v1::AppendExpertMapsRequest request;
  *request.mutable_store() = KeyOf(outgoing.rows.front().format);
  request.set_dropped(outgoing.dropped);
  request.mutable_useful_ids()->Add(outgoing.useful.begin(),
                                    outgoing.useful.end());
  for (const HistoryRow& row : outgoing.rows) {
    v1::ExpertMapRow* added = request.add_rows();
    added->set_key(row.key);
    added->set_map(row.map);
  }
  v1::AppendExpertMapsResponse response;
  const grpc::Status status =
      stub_->Append(&call.context(), request, &response);
  if (!status.ok()) Pause();
}

HistoryLink::HistoryLink(const CoordinatorAddress& address,
                         const Options& options, HistoryMailbox& mailbox)
    : impl_(std::make_unique<Impl>(address, options, mailbox)) {}

HistoryLink::~HistoryLink() = default;

}  // namespace portolan
